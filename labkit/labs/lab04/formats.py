"""Two 4-bit formats that hardware multiplies: what their blocks remember of weights."""

import torch
import torch.nn.functional as F

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # and their negatives
LARGEST_SCALE = 448.0  # of E4M3


def mxfp4(w: torch.Tensor) -> torch.Tensor:
    """`w` through MXFP4 and back, fp32: blocks of 32 E2M1 numbers share a power of two (E8M0).

    4.25 bits a number. The scale is that of the OCP's MX specification 1.0, section 6.3: the
    largest power of two not above absmax, over 4, the largest power of two in E2M1.
    """
    blocks = _blocks(w, 32)
    peaks = blocks.abs().amax(dim=1, keepdim=True).clamp_min(2.0**-120)
    return _rounded(blocks, peaks.log2().floor().exp2() / 4, w)


def nvfp4(w: torch.Tensor) -> torch.Tensor:
    """`w` through NVFP4 and back, fp32: blocks of 16 E2M1 numbers share a scale in E4M3.

    4.5 bits a number, and one fp32 scale for all of `w`, which maps the largest block's scale to
    the largest number of E4M3.
    """
    blocks = _blocks(w, 16)
    scales = blocks.abs().amax(dim=1, keepdim=True) / E2M1.max()
    whole = (scales.max() / LARGEST_SCALE).clamp_min(1e-30)
    return _rounded(blocks, (scales / whole).to(torch.float8_e4m3fn).float() * whole, w)


def _blocks(w, size):
    """The numbers of `w` in rows of `size`, the last one padded with zeros."""
    flat = w.detach().flatten().float()
    return F.pad(flat, (0, -len(flat) % size)).view(-1, size)


def _rounded(blocks, scales, w):
    """Each number as the nearest E2M1 times its block's scale, in the shape of `w`."""
    values = torch.cat([-E2M1, E2M1]).unique()
    scaled = blocks / torch.where(scales > 0, scales, 1.0)
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2)
    return (values[codes] * scales).flatten()[: w.numel()].view(w.shape)
