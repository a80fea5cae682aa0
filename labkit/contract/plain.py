"""Plain data: all that a check sees of a learner's objects."""


def plain(value: object) -> object:
    """`value` with every tensor detached, on the CPU and copied; TypeError for other data.

    Plain are None, bool, int, float, str, tensors, and lists, tuples (as lists) and dicts of them;
    NumPy scalars become Python numbers, a pandas DataFrame a dict of its columns as lists.
    """
    import torch

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    kind = type(value)
    if kind.__module__ == "numpy" and hasattr(value, "ndim"):
        if not value.ndim:
            return value.item()
        native = value.dtype.newbyteorder("=")  # torch needs native byte order and positive strides
        return torch.from_numpy(value.astype(native, order="C", copy=True))
    if kind.__name__ == "DataFrame":
        return {str(name): column.tolist() for name, column in value.items()}
    article = "an" if kind.__name__[0].lower() in "aeiou" else "a"
    raise TypeError(f"it returned {article} {kind.__name__}, which a check cannot read")


def copied(data: object) -> object:
    """`data` with tensors cloned (same grad flag) in nested lists, tuples and dicts."""
    import torch

    if isinstance(data, torch.Tensor):
        return data.detach().clone().requires_grad_(data.requires_grad)
    if type(data) in (list, tuple):
        return type(data)(copied(item) for item in data)
    if type(data) is dict:
        return {key: copied(item) for key, item in data.items()}
    return data
