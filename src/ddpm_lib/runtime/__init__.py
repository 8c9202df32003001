"""The machine: devices, processes, memory, limits. The only room that imports accelerate or
torch.distributed.
"""
