"""Compare simulated peak memory of a training step with measured and published peaks.

Measured: steps of a real model with random weights on this machine, with
`labkit.memory.measure.track` on a CPU and `torch.cuda.max_memory_allocated` on a GPU. On a CPU, a
third column has the peak from the allocator's own event log, which torch's profiler keeps.
Simulated: `labkit.memory.simulate` with the same settings, before the model exists.
Next to both: the estimate of `accelerate estimate-memory` for the same model, if it has one (for
training with Adam; it doesn't cover adapters, batches or lengths).

    python benchmarks/memory_accuracy.py --out build/memory_accuracy.json
"""

import argparse
import statistics
import time

import studies
import torch
import transformers
from real_steps import (
    FAMILIES,
    SMALL,
    allocators_peak,
    held_by,
    real_model,
    small_config,
    tiny,
    training,
)

from labkit.memory import configs
from labkit.memory.measure import track
from labkit.memory.settings import Settings
from labkit.memory.simulate import simulate
from labkit.training import hardware, models

ON_GPU = ("smollm2-135m", "llama-3.2-1b", "llama-2-7b")


def cases(device):
    """What is compared: (name, configuration, settings)."""
    names = list(SMALL) + (list(ON_GPU) if device == "cuda" else ["smollm2-135m"])
    for name in names:
        config = small_config(name) if name in SMALL else configs.find(name)
        for method in ("full", "lora", "qlora"):
            if method == "full" and name == "llama-2-7b":
                continue  # 108 GB of states
            for checkpointing in (False, True):
                seq = 512 if name in ON_GPU[1:] else 256
                yield (
                    name,
                    config,
                    Settings(method=method, checkpointing=checkpointing, batch=2, seq=seq),
                )
    config = small_config("gqa-untied")
    for other in (
        {"attention": "eager"},
        {"answer_tokens": 16},
        {"padded": True},
        {"dropout": 0.05},
        {"accumulation": 2, "method": "full"},
        {"autocast": False},
        {"targets": "q_proj,v_proj", "rank": 4},
        {"optim": "adamw_torch", "method": "full"},
        {"dtype": "bfloat16", "method": "full"},
        {"method": "qlora", "prepare_kbit": True},
        {"method": "qlora", "double_quant": False},
        {"objective": "dpo"},
        {"objective": "dpo", "method": "full"},
        {"objective": "grpo", "batch": 1, "samples": 4},
        {"objective": "grpo", "batch": 1, "samples": 4, "method": "qlora"},
    ):
        yield "gqa-untied", config, Settings(batch=4, seq=128).but(**other)
    for name in FAMILIES:
        targets = "q_proj,v_proj,down_proj" if name == "llama-4-scout" else "all-linear"
        for method in ("full", "lora", "qlora"):
            yield (
                name,
                tiny(name),
                Settings(method=method, batch=2, seq=40, rank=4, targets=targets),
            )


def measure(config, settings, device):
    """What `track` found in two steps; seconds of a step without and with it; the allocator's peak.

    The allocator's peak is of one more step, in which weights and states are in place.
    """
    model = real_model(config, settings, device)
    optimizer, step = training(model, config, settings, device)

    with track(*held_by(model, optimizer, step), device=device) as peak:
        step()
        step()
    hardware.wait()
    began = time.perf_counter()
    step()
    hardware.wait()
    plain = time.perf_counter() - began
    began = time.perf_counter()
    with track(*held_by(model, optimizer, step), device=device):
        step()
    hardware.wait()
    tracked = time.perf_counter() - began
    logged = peak.end_bytes + allocators_peak(step) if device == "cpu" else None
    return peak, plain, tracked, logged


def estimate_of_accelerate(config, settings):
    """Bytes that `accelerate estimate-memory` names for training with Adam; None without a row."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    if settings.method != "full":
        return None
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    total, _ = calculate_maximum_sizes(model)
    precision = "bfloat16" if settings.autocast else "float32"
    return max(estimate_training_usage(total, precision).values())


def compare(name, config, settings, device):
    """One row: what was simulated, measured and estimated, in bytes, and relative errors."""
    began = time.perf_counter()
    simulated = simulate(config, settings, device=device)
    seconds = time.perf_counter() - began
    found, plain_seconds, tracked_seconds, logged = measure(config, settings, device)
    measured = found.allocated_bytes if device == "cuda" else found.bytes
    theirs = estimate_of_accelerate(config, settings)
    plain = Settings(method=settings.method, batch=settings.batch, seq=settings.seq)
    return {
        "model": name,
        "settings": {
            key: value
            for key, value in vars(settings).items()
            if value != getattr(plain, key) or key == "method"
        },
        "simulated": simulated.peak,
        "measured": measured,
        "error": simulated.peak / measured - 1,
        "allocator_log": logged,
        "seconds_a_step": {"plain": plain_seconds, "tracked": tracked_seconds},
        "accelerate": theirs,
        "accelerate_error": theirs and theirs / measured - 1,
        "by_category": {"simulated": simulated.by_category, "measured": found.by_category},
        "reserved": found.reserved_bytes,
        "seconds_to_simulate": seconds,
    }


def show(row):
    extra = ", ".join(f"{k} {v}" for k, v in row["settings"].items() if k != "method")
    theirs = row["accelerate_error"]
    print(
        f"{row['model']:<14} {row['settings']['method']:<6} {extra:<26}"
        f" {row['simulated'] / 1e6:>9.1f} {row['measured'] / 1e6:>9.1f} {row['error']:>+8.2%}"
        f" {(row['allocator_log'] or 0) / 1e6:>9.1f}"
        + (f" {theirs:>+12.0%}" if theirs is not None else ""),
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=hardware.device())
    parser.add_argument("--only", help="models whose name contains this")
    parser.add_argument("--out", help="write what was measured here, as JSON")
    options = parser.parse_args()
    models.hush_libraries()
    print(
        f"{'model':<14} {'method':<6} {'':<26} {'simulated':>9} {'measured':>9}   error allocator",
        end="",
    )
    print("   accelerate   (MB)")
    rows = []
    for name, config, settings in cases(options.device):
        if not options.only or options.only in name:
            rows.append(compare(name, config, settings, options.device))
            show(rows[-1])
    worst = max(rows, key=lambda row: abs(row["error"]))
    times = [row["seconds_a_step"] for row in rows]
    slower = statistics.median(t["tracked"] / t["plain"] - 1 for t in times)
    print(f"track() makes a step {slower:+.0%} slower (median of all rows)")
    print(f"largest error {worst['error']:+.2%} ({worst['model']}, {worst['settings']})")
    studies.note(options.out, rows)


if __name__ == "__main__":
    main()
