"""What a cell leaves switched on for all that follows."""

from honest import early

early("old_default_type", "torch.set_default_tensor_type(torch.DoubleTensor)")
early(
    "default_device_cuda",
    "torch.set_default_device('cuda')",
    "a machine with a GPU: here no tensor can be made after it",
)
early("warnings_as_errors", "import warnings\nwarnings.filterwarnings('error')")
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
