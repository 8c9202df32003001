"""What other libraries call an option or a value, and what it is called here."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SAME = {
    "learning_rate": "lr train_lr base_lr peak_lr max_lr ae_lr stepsize",
    "lr_schedule": "lr_scheduler lr_scheduler_type lr_decay scheduler_type",
    "warmup_steps": "lr_warmup_steps num_warmup_steps warmup lr_warmup lr_rampup",
    "max_steps": (
        "train_num_steps num_train_steps max_train_steps lr_anneal_steps total_steps "
        "train_steps training_steps iterations num_iterations iters num_iters niter n_iter "
        "max_iter max_iters total_iters train_iters kimg duration"
    ),
    "batch_size": "train_batch_size per_device_train_batch_size batchsize bs batch mini_batch_size",
    "accumulation_steps": (
        "gradient_accumulation_steps gradient_accumulate_every grad_accum "
        "grad_accumulation accumulate_grad_batches accumulate gradient_accumulation accum_iter "
        "microbatch"
    ),
    "max_grad_norm": (
        "grad_clip clip_grad clip_grad_norm gradient_clip_val gradient_clipping "
        "grad_norm clip_norm gradient_clip grad_clip_norm"
    ),
    "adam_betas": "betas adam_beta1 adam_beta2 beta1 beta2",
    "adam_eps": "adam_epsilon",
    "weight_decay": "wd adam_weight_decay",
    "ema_decay": "ema_rate ema use_ema ema_beta ema_max_decay model_ema model_ema_decay",
    "ema_power": "ema_inv_gamma",
    "optimizer": "optim opt",
    "image_size": (
        "resolution size img_size imgsize imsize imgsz im_size image_resolution "
        "load_size crop_size input_size sample_size res"
    ),
    "size": "image_size resolution img_size",
    "channels": (
        "in_channels image_channels img_channels num_channels_in input_channels in_chans n_channels"
    ),
    "data": (
        "dataset dataset_name data_dir data_path data_root dataroot train_data_dir "
        "train_dir folder image_folder images_folder img_dir image_dir input_dir input path "
        "root source"
    ),
    "dataset": "data dataset_name",
    "images": "image input input_dir init_image img image_dir picture pictures",
    "mask": "masks mask_path mask_image mask_dir",
    "run": (
        "checkpoint_dir ckpt_dir model_path model_dir run_dir model ckpt_path "
        "checkpoint_path pretrained_model_name_or_path network network_pkl logdir log_dir"
    ),
    "src": "source data data_dir input input_dir",
    "out": "output output_dir out_dir outdir dest save_dir",
    "output": "out output_dir outdir save_dir out_dir",
    "output_dir": (
        "out output outdir out_dir logdir log_dir logging_dir save_dir savedir "
        "results_folder results_dir result_dir run_dir workdir work_dir exp_dir experiment_dir "
        "checkpoint_dir checkpoints_dir ckpt_dir default_root_dir output_path save_path project "
        "run_name name o"
    ),
    "checkpoint": "ckpt ckpt_path checkpoint_path step milestone epoch load resume_from_checkpoint",
    "resume": (
        "resume_from_checkpoint resume_from resume_checkpoint continue_train "
        "resume_training ckpt load load_milestone continue"
    ),
    "weights": "use_ema ema use_averaged no_ema model_type",
    "num_workers": (
        "workers dataloader_num_workers n_workers nworkers num_worker num_threads "
        "loader_workers j n_cpu num_cpus preprocessing_num_workers threads jobs"
    ),
    "horizontal_flip": (
        "random_flip flip hflip xflip mirror augment_horizontal_flip horizontal_flips"
    ),
    "fit": "resize_mode center_crop crop preprocess resize",
    "labels": "label_mode use_labels",
    "on_bad_image": "skip_bad ignore_errors on_error skip_errors skip_broken skip_bad_images",
    "val_data": (
        "validation_data val_dir valid_data val_dataset eval_data validation_dir "
        "val_folder test_data"
    ),
    "val_fraction": (
        "val_split validation_split valid_fraction val_size val_ratio validation_fraction test_size"
    ),
    "val_every": (
        "validation_steps eval_every eval_interval val_interval validate_every "
        "eval_steps validation_every val_check_interval eval_freq"
    ),
    "log_every": "log_interval logging_steps log_freq print_freq log_every_n_steps tick",
    "save_every": (
        "save_interval save_steps checkpointing_steps save_freq save_model_every "
        "checkpoint_every save_model_epochs save_and_sample_every snap ckpt_every save_period "
        "ckpt_interval"
    ),
    "keep_last": (
        "checkpoints_total_limit save_total_limit save_top_k keep_checkpoints max_checkpoints"
    ),
    "keep_best": (
        "save_best save_best_only best save_best_and_latest_only load_best_model_at_end monitor"
    ),
    "sample_every": (
        "save_and_sample_every sample_interval save_images_epochs save_image_every "
        "sample_freq calculate_fid_every"
    ),
    "sample_count": "num_grid num_fid_samples_log eval_batch_size n_sample",
    "sample_steps": (
        "sampling_timesteps num_inference_steps ddpm_num_inference_steps ddim_steps "
        "ddim_sampling_steps sampling_steps timestep_respacing num_sampling_steps n_steps"
    ),
    "sample_guidance_scale": "guidance_scale cond_scale cfg_scale cfg guidance",
    "sample_sampler": "sampler sampling_method",
    "sample_seed": "sampling_seed",
    "num": (
        "num_samples n_samples nsamples number count n num_images n_images sample_count "
        "n_imgs num_fid_samples eval_num fid_samples images num_gen amount samples"
    ),
    "n": "batch_size num num_samples n_samples num_images n_images bs count",
    "num_samples": "num n_samples nsamples n",
    "variants": "num num_samples n_samples n num_images num_variants num_images_per_prompt",
    "fraction": "strength noise_level t_start denoising_strength denoise t0",
    "num_steps": (
        "sampling_timesteps num_inference_steps ddim_steps ddim_sampling_steps "
        "sampling_steps timestep_respacing steps n_steps nfe num_sampling_steps timesteps "
        "sample_steps inference_steps"
    ),
    "guidance_scale": (
        "cond_scale cfg_scale cfg guidance w classifier_free_guidance "
        "scale_guidance unconditional_guidance_scale"
    ),
    "guidance_rescale": "rescaled_phi",
    "class_label": (
        "class classes label y class_idx class_labels class_id class_name class_cond labels"
    ),
    "cond": "classes y labels class_labels class_label",
    "classifier_scale": "classifier_guidance_scale",
    "eta": "ddim_eta ddim_sampling_eta",
    "sampler": "scheduler sampling_method method solver use_ddim noise_scheduler sampler_name",
    "spacing": "timestep_spacing skip_type ddim_discretize timestep_respacing",
    "seed": "random_seed manual_seed rng_seed seed_everything generator",
    "seeds": "seed random_seed repeats num_seeds",
    "progress": "progress_bar pbar use_tqdm tqdm quiet silent show_progress disable_tqdm",
    "return_trajectory": "return_all_timesteps return_intermediates log_every_t",
    "x_T": "noise latents start_code x_t",
    "trackers": (
        "report_to logger tracker log_with wandb tensorboard use_wandb use_tensorboard "
        "with_tracking use_tb"
    ),
    "device": (
        "gpu gpus gpu_id gpu_ids cuda use_gpu devices cpu no_cuda use_cpu accelerator "
        "gpu_index use_cuda"
    ),
    "mixed_precision": (
        "fp16 amp use_fp16 bf16 precision half use_bf16 use_amp "
        "mixed_precision_type dtype autocast fp32 tf32"
    ),
    "compile": "torch_compile use_compile compile_model",
    "deterministic": "cudnn_deterministic use_deterministic",
    "class_conditional": (
        "class_cond conditional cond use_labels class_labels with_labels labels_cond"
    ),
    "preset": "arch model_size config_name model_name network",
    "config": "config_file cfg_file yaml configs conf base c",
    "dry_run": "fast_dev_run dryrun check",
    "dim": (
        "model_channels num_channels base_channels hidden_dim hidden_size ch base_dim nf "
        "width block_out_channels model_dim num_features init_dim"
    ),
    "dim_mults": "channel_mult channel_mults ch_mult channel_multiplier dim_mult ch_mults",
    "blocks_per_level": (
        "num_res_blocks layers_per_block num_resnet_blocks num_blocks "
        "n_res_blocks res_blocks num_res_layers"
    ),
    "attention_levels": (
        "attention_resolutions attn_resolutions full_attn attn attention attn_layers"
    ),
    "heads": "num_heads attn_heads n_heads attention_heads num_attention_heads",
    "head_dim": "num_head_channels attn_dim_head attention_head_dim dim_head channels_per_head",
    "heads_up": "num_heads_upsample",
    "groups": "norm_num_groups resnet_block_groups num_groups gn_groups",
    "num_classes": "num_class_embeds n_classes nclasses class_dim label_dim",
    "class_drop_prob": (
        "cond_drop_prob label_dropout p_uncond uncond_prob class_dropout_prob "
        "drop_cond_prob unconditional_prob conditioning_dropout"
    ),
    "self_condition": "self_conditioning self_cond",
    "time_conditioning": "use_scale_shift_norm resnet_time_scale_shift",
    "gradient_checkpointing": (
        "use_checkpoint checkpointing enable_gradient_checkpointing "
        "activation_checkpointing grad_checkpointing"
    ),
    "out_channels": "out_dim out_ch",
    "low_res_factor": "sr_factor upscale_factor upscale",
    "timesteps": (
        "diffusion_steps num_timesteps num_train_timesteps ddpm_num_steps noise_steps "
        "num_diffusion_timesteps n_timesteps num_diffusion_steps t train_timesteps"
    ),
    "schedule": (
        "noise_schedule beta_schedule ddpm_beta_schedule noise_scheduler betas_schedule "
        "beta_scheduler"
    ),
    "schedule_options": (
        "beta_start beta_end schedule_fn_kwargs linear_start linear_end beta_1 beta_t"
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
    "loss": "loss_type use_kl criterion",
    "time_sampler": "schedule_sampler timestep_sampler t_sampler",
    "offset_noise": "offset_noise_strength noise_offset",
    "input_perturbation": "ip_noise_gamma",
    "clip": "clip_denoised clip_sample thresholding clip_x_start",
    "learn_uncertainty": "logvar learn_logvar",
    "metrics": "metric scores compute_fid fid kid isc score",
    "reference": "ref real real_data ref_path dataset_path gt fid_stats ref_batch real_path",
    "features": "feature_extractor extractor backbone feature feature_layer dims",
    "sigma_rel": "ema_std sigma gamma std length",
    "vary": "grid sweep ablate param params",
}
"""Our option → its names elsewhere: lucidrains, diffusers, guided-diffusion, EDM, Lightning, and
plain habit.
"""

_NOTES = {
    "lr_anneal_steps": (
        "there the rate falls to 0 over these steps; here also set {lr_schedule} to linear"
    ),
    "kimg": "counted here in optimizer steps: images / {batch_size}",
    "duration": "counted here in optimizer steps: images / {batch_size}",
    "microbatch": "here the number of parts that a batch is cut into, not the size of a part",
    "use_ema": "averages are always kept, and used for sampling",
    "quiet": "--no-progress, or progress=False",
    "silent": "--no-progress, or progress=False",
    "disable_tqdm": "--no-progress, or progress=False",
    "use_ddim": "it is 'ddim' by default",
    "timestep_respacing": "a number of steps; its words, such as ddim25, go to {spacing}",
    "predict_xstart": "its value is 'x0'",
    "predict_epsilon": "its value is 'eps'",
    "learn_sigma": "its value is 'learned_range'",
    "learned_variance": "its value is 'learned_range'",
    "snr_gamma": "its value is 'min_snr', and γ goes to weighting_options",
    "min_snr_gamma": "its value is 'min_snr', and γ goes to weighting_options",
    "min_snr_loss_weight": "its value is 'min_snr'",
    "beta_start": "as beta_start=1e-4, for the schedule 'linear' or 'scaled_linear'",
    "beta_end": "as beta_end=0.02, for the schedule 'linear' or 'scaled_linear'",
    "attention_resolutions": "here levels are named, 0 the finest, not resolutions",
    "attn_resolutions": "here levels are named, 0 the finest, not resolutions",
    "gpu": "one of several GPUs: CUDA_VISIBLE_DEVICES=1 before the command, or 'cuda:1'",
    "gpu_id": "one of several GPUs: CUDA_VISIBLE_DEVICES=1 before the command, or 'cuda:1'",
    "gpu_ids": (
        "several GPUs: CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 -m ddpm_lib.cli …"
    ),
    "gpus": "several GPUs: torchrun --nproc_per_node 2 -m ddpm_lib.cli …",
    "devices": "several GPUs: torchrun --nproc_per_node 2 -m ddpm_lib.cli …",
    "cpu": "its value is 'cpu'",
    "use_cpu": "its value is 'cpu'",
    "no_cuda": "its value is 'cpu'",
    "cuda": "its value is 'cuda'",
    "use_cuda": "its value is 'cuda'",
    "fp16": "its value is 'fp16'",
    "use_fp16": "its value is 'fp16'",
    "bf16": "its value is 'bf16'",
    "amp": "its value is 'bf16' or 'fp16'; where it pays it is on by itself",
    "use_amp": "its value is 'bf16' or 'fp16'; where it pays it is on by itself",
    "fp32": "its value is 'no'",
    "wandb": "its value is 'wandb'",
    "use_wandb": "its value is 'wandb'",
    "tensorboard": "its value is 'tensorboard'",
    "use_tensorboard": "its value is 'tensorboard'",
    "resume_from_checkpoint": "the same command continues its run by itself",
    "resume_from": "the same command continues its run by itself",
    "continue_train": "the same command continues its run by itself",
    "save_and_sample_every": "and {sample_every} for the grids",
    "save_model_epochs": "counted here in optimizer steps",
    "save_images_epochs": "counted here in optimizer steps",
    "center_crop": "its value 'crop' is the default",
    "use_scale_shift_norm": "its value is 'scale_shift'",
}
"""What to say beside the name: where the value differs too."""

_ELSEWHERE = {
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
    ("image_size", "resolution", "img_size", "size"): (
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
    ): "copy the run directory; nothing is uploaded from here",
    ("lora", "rank", "use_lora"): "all weights are trained; leave it out",
    ("split_batches",): "the batch size counts the images of all processes together; leave it out",
    ("calculate_fid", "inception_block_idx"): "score a run with ddpm evaluate RUN",
}
"""Words without an option of the same meaning where they are used: what to do instead."""

VALUES = {
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
}
"""Our value of an option → what it is called elsewhere."""


def _key(word: str) -> str:
    return re.sub(r"[-_ ]+", "_", word.strip().lstrip("-")).lower()


def _ungrouped(word: str) -> str:
    return re.sub(r"^(model|diffusion|sample)\.", "", _key(word))


_OURS: dict[str, list[str]] = {}
for _table in (_SAME, VALUES):
    for _name, _words in _table.items():
        for _word in _words.split():
            _OURS.setdefault(_key(_word), []).append(_name)
_INSTEAD = {word: text for words, text in _ELSEWHERE.items() for word in words}


def same_name(word: str, options: Iterable[str]) -> str | None:
    """Return the one of `options` that another library calls `word`, in the spelling it has there;
    None for none.

    Flags and keywords, with dashes or underscores, in groups ("model.dim") or not, all count as the
    same name.

    >>> same_name("lr", ["lr_schedule", "learning_rate"])
    'learning_rate'
    >>> same_name("--channel-mult", ["--model.dim-mults"])
    '--model.dim-mults'
    """
    spelled: dict[str, str] = {}
    for option in options:
        spelled.setdefault(_key(option), option)
    for option in list(spelled.values()):  # options of a group give way to those of none
        spelled.setdefault(_ungrouped(option), option)
    key = _key(word)
    if key not in spelled:
        key = _ungrouped(word)
    if key in spelled:
        return spelled[key]
    return next((spelled[ours] for ours in _OURS.get(key, ()) if ours in spelled), None)


def note(word: str, options: Iterable[str]) -> str | None:
    """Return what must be said beside the name: how the value differs, or what to do where there is
    no such option.

    >>> note("epochs", ["max_steps", "batch_size"])
    'the length of a run is counted in optimizer steps, max_steps: epochs × images / batch_size'
    """
    names, key = list(options), _ungrouped(word)
    text = _NOTES.get(key) if same_name(word, names) else _INSTEAD.get(key)
    if text is None:
        return None
    flags = any(name.startswith("--") for name in names)
    return re.sub(r"\{(\w+)\}", lambda m: f"--{m[1].replace('_', '-')}" if flags else m[1], text)


def hint(word: str, options: Iterable[str]) -> str | None:
    """Word what another library's name for an option means here, None for a word that no other
    library uses.

    >>> hint("lr", ["learning_rate", "lr_schedule"])
    "did you mean 'learning_rate'?"
    """
    names = list(options)
    ours, beside = same_name(word, names), note(word, names)
    if ours is None:
        return beside
    return f"did you mean {ours!r}?" + (f" ({beside})" if beside else "")
