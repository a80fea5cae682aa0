"""In every Python that has this folder on its path, torch finds the card of card.cpp."""

import ctypes
import importlib.util
import os
import sys
import types

LIBRARY = os.environ["PRETENDED_CARD"]
MAJOR, MINOR = map(int, os.environ.get("PRETENDED_CAPABILITY", "8.0").split("."))
N_BYTES = 16 * 2**30


class _WithCard:
    """Finds torch: the card's library before it, for torch asks once what there is."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        library = ctypes.CDLL(LIBRARY)
        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module

        def then_answer(module):
            execute(module)
            _answer(module, library)

        spec.loader.exec_module = then_answer
        return spec


def _answer(torch, library):
    """Make torch.cuda answer for the card where it would ask NVIDIA's driver."""
    about = {"name": "a pretended card", "total_memory": N_BYTES, "major": MAJOR, "minor": MINOR}
    library.card_held.restype = library.card_peak.restype = ctypes.c_int64

    def by_name(**answers):
        return {name: lambda *_, answer=answer, **__: answer for name, answer in answers.items()}

    nothing = ("_lazy_init", "empty_cache", "ipc_collect", "manual_seed", "manual_seed_all")
    nothing += ("set_device", "set_rng_state", "set_rng_state_all", "synchronize")
    fixed = by_name(**dict.fromkeys(nothing)) | by_name(
        current_device=0,
        device_count=1,
        get_device_capability=(MAJOR, MINOR),
        get_device_name=about["name"],
        get_device_properties=types.SimpleNamespace(**about, multi_processor_count=1),
        is_bf16_supported=MAJOR >= 8,
        is_current_stream_capturing=False,
        is_initialized=True,
        memory_stats={},
        _exchange_device=0,
        _maybe_exchange_device=0,
    )
    counted = {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "is_available": _asked_by_others_than_bitsandbytes,
        "max_memory_allocated": lambda *_: library.card_peak(),
        "max_memory_reserved": lambda *_: library.card_peak(),
        "mem_get_info": lambda *_: (N_BYTES - library.card_held(), N_BYTES),
        "memory_allocated": lambda *_: library.card_held(),
        "memory_reserved": lambda *_: library.card_held(),
        "reset_peak_memory_stats": lambda *_: library.card_reset_peak(),
    }
    for name, answer in (fixed | counted).items():
        setattr(torch.cuda, name, answer)
        if "rng_state" in name:  # transformers asks the module
            setattr(torch.cuda.random, name, answer)

    def clone(storage):  # its own would make storage of CUDA by name, which this torch cannot
        like = torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device)
        return like.untyped_storage().copy_(storage)

    torch.UntypedStorage.clone = clone


def _asked_by_others_than_bitsandbytes():
    """Whether there is a card; bitsandbytes would look for kernels of CUDA."""
    return not sys._getframe(1).f_globals["__name__"].startswith("bitsandbytes")


if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
    sys.meta_path.insert(0, _WithCard())
