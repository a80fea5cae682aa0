"""What bitsandbytes itself makes of weights: the reference of lab 4."""

import torch


def codebook():
    """The 16 values of NF4, (16,) double."""
    from bitsandbytes.functional import get_4bit_type

    return get_4bit_type("nf4", device="cpu").double()


def stored_codes(w):
    """Codes (n,) and packed bytes as bitsandbytes stores them in NF4."""
    from bitsandbytes.functional import quantize_4bit

    stored = quantize_4bit(w, blocksize=64, quant_type="nf4")[0].flatten()
    return torch.stack([stored >> 4, stored & 15], 1).flatten()[: w.numel()].long(), stored
