"""The diffusion process: loss, sampling and likelihood as functions over one `Denoiser`."""
