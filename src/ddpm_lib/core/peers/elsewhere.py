"""Words without an option of the same meaning where they are used: what to do instead, or why there
is nothing to do.
"""

INSTEAD: dict[tuple[str, ...], str] = {
    (
        "epochs",
        "num_epochs",
        "num_train_epochs",
        "max_epochs",
        "n_epochs",
        "nepochs",
        "total_epochs",
        "epoch",
        "nb_epochs",
    ): (
        "the length of a run is counted in optimizer steps, {max_steps}: epochs × images /"
        " {batch_size}"
    ),
    (
        "sampling_timesteps",
        "num_inference_steps",
        "ddim_steps",
        "ddim_sampling_steps",
        "timestep_respacing",
        "sampling_steps",
    ): (
        "sampling steps are chosen when sampling: diffusion.sample(num_steps=50), or ddpm sample"
        " --num-steps 50"
    ),
    ("image_size", "resolution", "img_size", "size", "sample_size", "shape"): (
        "a network draws images of the size that it was trained at: {image_size} of training, "
        "GaussianDiffusion(image_size=…) in Python"
    ),
    (
        "auto_normalize",
        "normalize",
    ): "images are uint8 or in [0, 1] outside and normalised inside, without an option",
    (
        "flash_attn",
        "use_flash_attention",
        "enable_xformers_memory_efficient_attention",
        "xformers",
    ): "attention takes torch's fastest kernel by itself; leave it out",
    ("learned_variance", "learn_sigma"): (
        "the process says it: GaussianDiffusion(variance='learned_range'), over "
        "Unet(out_channels=…) of twice the channels"
    ),
    ("prompt", "text", "caption", "captions"): "networks here know classes, not texts",
    ("allow_tf32",): (
        "torch's own setting, torch.set_float32_matmul_precision('high'); bf16 is on by itself"
        " where it pays"
    ),
    (
        "push_to_hub",
        "hub_token",
        "hub_model_id",
        "hub_private_repo",
    ): "ddpm push RUN OWNER/NAME uploads a run; in Python, trainer.push_to_hub or diffusion's",
    ("lora", "use_lora"): "all weights are trained; leave it out",
    ("split_batches",): "the batch size counts the images of all processes together; leave it out",
    (
        "calculate_fid",
        "inception_block_idx",
        "num_fid_samples",
        "eval",
        "eval_total_size",
        "fid_use_torch",
        "num_images",
        "fid_cache",
    ): "score a run with ddpm evaluate RUN",
    ("overwrite_output_dir",): (
        "runs are never overwritten: remove the directory, or choose another {output_dir}"
    ),
    ("logging_dir", "image_dir"): "logs and grids lie in the run directory, {output_dir}",
    ("dataset_config_name",): (
        "in Python, pass datasets.load_dataset(name, config) itself as the data"
    ),
    ("preserve_input_precision",): (
        "pictures of more than 8 bits are brought to 8 bits by {value_range}"
    ),
    ("num_gpus", "distributed", "parallel", "rigid_launch"): (
        "several GPUs: torchrun --nproc_per_node 2 -m ddpm_lib.cli …"
    ),
    ("local_rank", "rank"): "torchrun and srun tell each process its rank; leave it out",
    ("cache_dir",): "the hub's cache is where HF_HOME says",
    (
        "classifier_path",
        "classifier_use_fp16",
        "classifier_width",
        "classifier_depth",
        "classifier_attention_resolutions",
        "classifier_use_scale_shift_norm",
        "classifier_resblock_updown",
        "classifier_pool",
    ): "guide by a classifier in Python: diffusion.sample(classifier=…)",
    ("base_samples",): "small images to enlarge are the condition low_res",
    ("train",): "the command trains; leave it out",
    ("diffusion_model",): "it is the first argument: Trainer(diffusion, data)",
    ("convert_image_to",): (
        "images get the channels of the process: Unet(channels=1) for L, 3 for RGB, 4 for RGBA"
    ),
    ("in_channels", "input_channels"): "the network says it: Unet(channels=…)",
}
"""Words → what to do; {names} of our options are written as the reader writes them."""

NOWHERE: dict[tuple[str, ...], str] = {
    (
        "learned_sinusoidal_cond",
        "random_fourier_features",
        "learned_sinusoidal_dim",
        "sinusoidal_pos_emb_theta",
    ): (
        "times are embedded by fixed sinusoids of frequencies from 1 to 1/10000;"
        " ddpm_lib.nn.LucidrainsUnet has others"
    ),
    ("time_embedding_type",): "times are embedded by sinusoids of frequencies from 1 to 1/10000",
    ("ema_update_every",): "averages are updated at every step",
    ("center_input_sample",): "images are in [-1, 1] inside already",
    ("mid_block_scale_factor",): "sums in the middle are not scaled",
    ("act_fn",): "the activation is SiLU",
    ("attn_norm_num_groups",): "attention has the groups of the other blocks, {groups}",
    ("clip_sample_range", "sample_max_value"): "the range is that of images, [-1, 1] inside",
    ("steps_offset",): "{spacing} names the levels themselves",
    ("set_alpha_to_one",): "sampling ends at clean data",
    ("output_type",): "samples are float32 tensors in [0, 1]",
    ("return_dict",): "samples are returned as a tensor",
    ("use_clipped_model_output",): "the noise always follows from the clipped image",
    ("use_new_attention_order",): "it is the order of channels in published weights alone",
    ("fp16_scale_growth",): "the scale of the loss grows as torch's GradScaler lets it",
}
"""Words for what is always one way here → that way."""

HOME: dict[str, tuple[str, str]] = {
    "network": ("Unet({python}=…)", "ddpm train --model.{flag}"),
    "process": ("GaussianDiffusion({python}=…)", "ddpm train --diffusion.{flag}"),
    "sampling": ("diffusion.sample({python}=…)", "ddpm sample --{flag}"),
    "training": ("Trainer({python}=…)", "ddpm train --{flag}"),
}
"""Group of our options → where its options are given, in Python and as a flag."""
