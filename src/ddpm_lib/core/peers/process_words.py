"""Words for the options of the diffusion process."""

SAME: dict[str, str] = {
    "timesteps": (
        "diffusion_steps num_timesteps num_train_timesteps ddpm_num_steps noise_steps "
        "num_diffusion_timesteps n_timesteps num_diffusion_steps t train_timesteps"
    ),
    "schedule": (
        "noise_schedule beta_schedule ddpm_beta_schedule noise_scheduler betas_schedule "
        "beta_scheduler trained_betas betas"
    ),
    "schedule_options": (
        "beta_start beta_end schedule_fn_kwargs linear_start linear_end beta_1 beta_t "
        "rescale_betas_zero_snr"
    ),
    "parametrization": (
        "objective prediction_type parameterization predict_xstart pred_type "
        "predict_epsilon prediction target param_type parametrisation parameterisation "
        "mean_type model_mean_type"
    ),
    "weighting": (
        "loss_weight loss_weighting min_snr_loss_weight snr_gamma min_snr_gamma "
        "p2_loss_weight_gamma weighting_scheme"
    ),
    "variance": "variance_type learn_sigma learned_variance model_var_type var_type sigma_small",
    "loss": "loss_type use_kl criterion rescale_learned_sigmas",
    "time_sampler": "schedule_sampler timestep_sampler t_sampler",
    "offset_noise": "offset_noise_strength noise_offset",
    "input_perturbation": "ip_noise_gamma",
    "clip": "clip_denoised clip_sample thresholding clip_x_start dynamic_thresholding",
    "learn_uncertainty": "logvar learn_logvar",
    "dynamic_threshold_ratio": "dynamic_thresholding_ratio",
    "vlb_weight": "vlb_coeff lambda_vlb",
}
"""Ours → theirs."""

NOTES: dict[str, str] = {
    "predict_xstart": "its value is 'x0'",
    "predict_epsilon": "its value is 'eps'",
    "learn_sigma": "its value is 'learned_range'",
    "learned_variance": "its value is 'learned_range'",
    "snr_gamma": "its value is 'min_snr', and γ goes to weighting_options",
    "min_snr_gamma": "its value is 'min_snr', and γ goes to weighting_options",
    "min_snr_loss_weight": "its value is 'min_snr'",
    "beta_start": "as beta_start=1e-4, for the schedule 'linear' or 'scaled_linear'",
    "beta_end": "as beta_end=0.02, for the schedule 'linear' or 'scaled_linear'",
    "trained_betas": "its value is 'betas', and they go to {schedule_options}",
    "rescale_betas_zero_snr": "as zero_terminal_snr=True",
    "thresholding": "its value is 'dynamic'",
    "sigma_small": "its value is 'fixed_small'",
    "use_kl": "its value is 'vlb'",
    "rescale_learned_sigmas": "its value is 'hybrid', the default of a learned variance",
    "clip_sample": "'static' for True, 'none' for False",
    "clip_denoised": "'static' for True, 'none' for False",
}
"""What to say beside the name: where the value differs too."""

MORE: tuple[str, ...] = (
    "time_sampler_options",
    "weighting_options",
    "parametrization_options",
    "immiscible",
)
"""Options of ours for which nobody has another word."""
