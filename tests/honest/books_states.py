"""What a cell leaves switched on for all that follows."""

from attack import source
from honest import early, honest

early("grad_off", "torch.set_grad_enabled(False)", "off for all that follows")
early("no_grad_entered", "torch.no_grad().__enter__()")
early("inference_entered", "mode = torch.inference_mode()\nmode.__enter__()")
early("bfloat16", "torch.set_default_dtype(torch.bfloat16)")
early("old_default_type", "torch.set_default_tensor_type(torch.DoubleTensor)")
early("default_device_meta", "torch.set_default_device('meta')\nbig = torch.nn.Linear(9999, 9999)")
early(
    "default_device_cuda",
    "torch.set_default_device('cuda')",
    "a machine with a GPU: here no tensor can be made after it",
)
early("device_entered", "torch.device('meta').__enter__()")
early("autocast_entered", "torch.autocast('cpu', dtype=torch.bfloat16).__enter__()")
early("warnings_as_errors", "import warnings\nwarnings.filterwarnings('error')")
early("numpy_raises", "import numpy as np\nnp.seterr(all='raise')", lab="05_rank")
early(
    "logging_set_up",
    "import logging, sys\nlogging.basicConfig(level=logging.DEBUG, stream=sys.stdout, force=True)\n"
    "logging.getLogger().handlers[0].setFormatter(logging.Formatter('%(asctime)s %(message)s'))",
)
early("small_recursion_limit", "import sys\nsys.setrecursionlimit(120)", lab="03_peft")
early("other_folder", "import os, tempfile\nos.chdir(tempfile.mkdtemp())\nos.environ['A'] = 'b'")
early(
    "folder_that_is_gone",
    "import os, tempfile\nwith tempfile.TemporaryDirectory() as place:\n    os.chdir(place)",
)
early("deterministic", "torch.use_deterministic_algorithms(True)\ntorch.set_num_threads(4)")
early("anomaly", "torch.autograd.set_detect_anomaly(True)")
early("stdout_to_a_file", "import sys\nsys.stdout = sys.stderr = open('log.txt', 'w')")
early("stdout_closed", "import sys\nkeep = sys.stdout\nsys.stdout.close()\nprint('lost')")
early(
    "alarm_left",
    "import signal\n\ndef late(*_):\n    raise TimeoutError('too slow')\n\n"
    "signal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)",
    "it goes off between two cells",
)
early("traced", "import sys\nsys.setprofile(lambda *args: None)\nsys.settrace(lambda *args: None)")
early("default_signals", "from signal import *\nsignal(SIGPIPE, SIG_DFL)\nsignal(SIGCHLD, SIG_IGN)")
early("garbage_collector_off", "import gc\ngc.disable()\ngc.set_threshold(1)")
early("saved_on_cpu", "torch.autograd.graph.save_on_cpu().__enter__()")
early(
    "lab_3_grad_off_and_float64",
    "torch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)",
    lab="03_peft",
)
early("lab_4_in_bfloat16", "torch.set_default_dtype(torch.bfloat16)", lab="04_qlora")


@honest()
def names_of_imports_taken_later(book):
    """The check had passed when these names were taken for something else."""
    book.last(
        "copy = 3\nsum = 0\nfor x in range(3):\n    sum += x\nmath = [1]\nlist = [2]\nlen = 3"
    )


@honest()
def settings_changed_later(book):
    """A constant that an answer uses, changed below for an experiment of one's own."""
    book.early("RANKED = True")
    code = source(book.cell("lora_forward")).replace(
        "(alpha / r)", "(alpha / (r if RANKED else 1))"
    )
    book.replace("lora_forward", code)
    book.last("RANKED = False")
