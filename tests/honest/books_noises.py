"""Output by the megabyte, threads, pools and pictures."""

from honest import early

early("fifty_megabytes", "for _ in range(50):\n    print('x' * 1_000_000)")
early(
    "stderr_by_the_megabyte",
    "import sys\nfor _ in range(40):\n    print('x' * 2_000_000, file=sys.stderr, flush=True)",
)
early("bars", "from tqdm import tqdm\nfor _ in tqdm(range(20_000), mininterval=0): pass")
early("rich_bar", "from rich.progress import track\nfor _ in track(range(100)): pass")
early(
    "thread_left",
    "import threading, time\n\ndef wait():\n    while True:\n        time.sleep(0.01)\n\n"
    "threading.Thread(target=wait, daemon=True).start()",
)
early("thread_that_fails", "import threading\nthreading.Thread(target=lambda: 1 / 0).start()")
early(
    "pool_of_threads_left",
    "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(8)\n"
    "list(pool.map(len, ['a'] * 100))",
)
early(
    "pool_of_processes",
    "import multiprocessing\n\ndef square(x):\n    return x * x\n\n"
    "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
    "    print(pool.map(square, range(10)))",
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
early("nested_loop", "import nest_asyncio\nnest_asyncio.apply()\nimport asyncio\nasyncio.run(1)")
early(
    "pictures",
    "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots(2, 2)\n"
    "axes[0, 0].plot([1, 2])\nplt.show()\nfor i in range(30):\n    plt.figure()\ndisplay(figure)",
)
early("plotly", "import plotly.express as px\nfig = px.line(x=[1], y=[2])\nfig.show()")
early(
    "widgets",
    "import ipywidgets as w\nfrom ipywidgets import interact\n"
    "display(w.IntSlider())\n\n@interact(r=(1, 8))\ndef draw(r=4):\n    print(r)",
)
early("output_cleared", "from IPython.display import *\nclear_output()\ndisplay(HTML('<b>x</b>'))")
early("slow", "import time\ntime.sleep(8)")
early("large", "x = torch.zeros(8_000, 8_000)\ny = x + 1\ndel x, y\nbig = [0] * 10_000_000")
early(
    "trained_for_a_while",
    "net = nn.Linear(64, 64)\noptimizer = torch.optim.AdamW(net.parameters())\n"
    "for step in range(300):\n    loss = net(torch.randn(32, 64)).square().mean()\n"
    "    loss.backward()\n    optimizer.step()\n    print(f'\\rstep {step} {loss:.3f}', end='')",
)
early(
    "files_left",
    "import os\nfor i in range(500):\n    open(f'file{i}.txt', 'w').write('x' * 1000)\n"
    "torch.save({'a': torch.zeros(1_000_000)}, 'model.pt')\nopen('kept.txt', 'w')",
)
early("descriptors_left", "kept = [open('/dev/null') for _ in range(150)]")
early(
    "tensorboard",
    "from torch.utils.tensorboard import SummaryWriter\nwriter = SummaryWriter('runs')",
)
early(
    "hooks_left", "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: print(m))"
)
early("profiled", "profile = torch.profiler.profile()\nprofile.start()")
early(
    "lab_6_with_threads",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    lab="06_merging",
)
