"""Output by the megabyte, threads, pools and pictures."""

from honest import early

early("fifty_megabytes", "for _ in range(50):\n    print('x' * 1_000_000)")
early("bars", "from tqdm import tqdm\nfor _ in tqdm(range(20_000), mininterval=0): pass")
early(
    "thread_left",
    "import threading, time\n\ndef wait():\n    while True:\n        time.sleep(0.01)\n\n"
    "threading.Thread(target=wait, daemon=True).start()",
)
early(
    "pool_of_processes_left",
    "from concurrent.futures import ProcessPoolExecutor\npool = ProcessPoolExecutor(2)\n"
    "print(list(pool.map(abs, range(10))))",
)
early(
    "process_left",
    "import subprocess\nserver = subprocess.Popen(['sleep', '60'])",
)
early(
    "loader_with_workers",
    "from torch.utils.data import DataLoader, TensorDataset\n"
    "data = TensorDataset(torch.randn(64, 4), torch.randn(64, 1))\n"
    "loader = DataLoader(data, batch_size=8, num_workers=2, persistent_workers=True)\n"
    "for x, y in loader:\n    pass",
)
early(
    "asynchronous",
    "import asyncio\n\nasync def wait():\n    await asyncio.sleep(0.01)\n    return 3\n\n"
    "x = await wait()\ntask = asyncio.create_task(wait())\n"
    "print(await asyncio.gather(wait(), task))",
)
early(
    "pictures",
    "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots(2, 2)\n"
    "axes[0, 0].plot([1, 2])\nplt.show()\nfor i in range(30):\n    plt.figure()\ndisplay(figure)",
)
early(
    "widgets",
    "import ipywidgets as w\nfrom ipywidgets import interact\n"
    "display(w.IntSlider())\n\n@interact(r=(1, 8))\ndef draw(r=4):\n    print(r)",
)
early("output_cleared", "from IPython.display import *\nclear_output()\ndisplay(HTML('<b>x</b>'))")
early("slow", "import time\ntime.sleep(8)")
early("large", "x = torch.zeros(8_000, 8_000)\ny = x + 1\ndel x, y\nbig = [0] * 10_000_000")
early(
    "files_left",
    "import os\nfor i in range(500):\n    open(f'file{i}.txt', 'w').write('x' * 1000)\n"
    "torch.save({'a': torch.zeros(1_000_000)}, 'model.pt')\nopen('kept.txt', 'w')",
)
early("profiled", "profile = torch.profiler.profile()\nprofile.start()")
early("descriptors_left", "kept = [open('/dev/null') for _ in range(150)]")
early(
    "hooks_left", "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: print(m))"
)
