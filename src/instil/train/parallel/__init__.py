"""Training in several processes, on PyTorch's own engine: the one room that imports ``torch.distributed``.

`Processes` are those that train together (DDP, or FSDP2 where the model does not fit), as torchrun starts them;
`launch` starts them on one machine.
"""
