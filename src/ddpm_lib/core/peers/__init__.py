"""What other libraries call options and values: lucidrains, diffusers, guided-diffusion, EDM,
ddpm-torch, pytorch-ddpm, Lightning, and plain habit. A file per group of our options.
"""
