"""Our values of options → what they are called elsewhere."""

VALUES: dict[str, str] = {
    "eps": "epsilon pred_noise noise pred_eps predict_noise ε",
    "x0": "sample pred_x0 x_start xstart start_x pred_xstart x_0 data",
    "v": "v_prediction pred_v velocity v_pred vpred",
    "cosine": "squaredcos_cap_v2 squared_cosine cos",
    "scaled_linear": "sqrt_linear sqrt",
    "dpmpp_2m": (
        "dpm++ dpmpp dpm_solver dpmsolver dpm_solver++ dpmsolver++ dpm++_2m "
        "dpm_solver_pp dpm_solver_multistep"
    ),
    "dpmpp_2m_sde": "dpm++_2m_sde sde_dpmsolver++",
    "ddpm": "ancestral p_sample ddpm_ancestral",
    "ddim": "implicit",
    "heun": "edm edm_sampler",
    "euler": "ode pf_ode",
    "learned_range": "learned learn_sigma learned_interpolation",
    "fixed_small": "fixedsmall fixed_small_log",
    "fixed_large": "fixedlarge",
    "dynamic": "dynamic_threshold imagen",
    "loss_aware": "loss-second-moment loss_second_moment importance",
    "no": "fp32 float32 none 32 off full no_amp",
    "fp16": "16 float16 half 16_mixed",
    "bf16": "bfloat16 bf16_mixed",
    "cuda": "gpu",
    "npz_weights": "numpy npz np",
    "torch_export": "torch pt2 pytorch exported_program torchscript",
    "safetensors": "safetensor pretrained",
}
