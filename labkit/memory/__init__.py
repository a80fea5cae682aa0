"""Training memory: measured (`measure`), simulated (`simulate`), in closed form (`budget`)."""

import logging

# on import it warns that an optional CPU inference kernel is missing
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
