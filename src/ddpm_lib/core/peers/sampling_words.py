"""Words for the options of sampling."""

SAME: dict[str, str] = {
    "n": "batch_size num num_samples n_samples num_images n_images bs count",
    "num_steps": (
        "sampling_timesteps num_inference_steps ddim_steps ddim_sampling_steps "
        "sampling_steps timestep_respacing steps n_steps nfe num_sampling_steps timesteps"
        " sample_steps inference_steps subseq_size"
    ),
    "guidance_scale": (
        "cond_scale cfg_scale cfg guidance w classifier_free_guidance scale_guidance "
        "unconditional_guidance_scale"
    ),
    "guidance_rescale": "rescaled_phi",
    "cond": "classes y labels class_labels class_label",
    "classifier_scale": "classifier_guidance_scale",
    "eta": "ddim_eta ddim_sampling_eta",
    "sampler": (
        "scheduler sampling_method method solver use_ddim noise_scheduler sampler_name sampler_type"
    ),
    "spacing": "timestep_spacing skip_type ddim_discretize timestep_respacing skip_schedule",
    "seeds": "seed random_seed repeats num_seeds",
    "return_trajectory": "return_all_timesteps return_intermediates log_every_t",
    "x_T": "noise latents start_code x_t",
    "classifier": "cond_fn classifier_fn",
}
"""Ours → theirs."""

NOTES: dict[str, str] = {
    "use_ddim": "it is 'ddim' by default",
    "timestep_respacing": "a number of steps; its words, such as ddim25, go to {spacing}",
    "generator": "a number names the noise of every image",
}
"""What to say beside the name: where the value differs too."""

MORE: tuple[str, ...] = (
    "spacing_options",
    "sampler_options",
    "first_index",
    "guidance_interval",
)
"""Options of ours for which nobody has another word."""
