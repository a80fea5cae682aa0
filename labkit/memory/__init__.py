"""Memory of training: measured (`measure`), simulated (`simulate`), in closed form (`budget`)."""

import logging

# on import it misses an optional kernel for inference on CPUs, and says so
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
