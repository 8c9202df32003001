"""Words for the options of training."""

SAME: dict[str, str] = {
    "learning_rate": "lr train_lr base_lr peak_lr max_lr ae_lr stepsize",
    "lr_schedule": "lr_scheduler lr_scheduler_type lr_decay scheduler_type scheduler sched",
    "warmup_steps": "lr_warmup_steps num_warmup_steps warmup lr_warmup lr_rampup",
    "max_steps": (
        "train_num_steps num_train_steps max_train_steps lr_anneal_steps total_steps "
        "train_steps training_steps iterations num_iterations iters num_iters niter "
        "n_iter max_iter max_iters total_iters train_iters kimg duration"
    ),
    "batch_size": (
        "train_batch_size per_device_train_batch_size batchsize bs batch mini_batch_size "
        "total_batch_size"
    ),
    "accumulation_steps": (
        "gradient_accumulation_steps gradient_accumulate_every grad_accum "
        "grad_accumulation accumulate_grad_batches accumulate gradient_accumulation "
        "accum_iter microbatch num_accum"
    ),
    "max_grad_norm": (
        "grad_clip clip_grad clip_grad_norm gradient_clip_val gradient_clipping grad_norm"
        " clip_norm gradient_clip grad_clip_norm"
    ),
    "adam_betas": "betas adam_beta1 adam_beta2 beta1 beta2",
    "adam_eps": "adam_epsilon",
    "weight_decay": "wd adam_weight_decay",
    "ema_decay": "ema_rate ema use_ema ema_beta ema_max_decay model_ema model_ema_decay",
    "ema_power": "ema_inv_gamma",
    "optimizer": "optim opt",
    "output_dir": (
        "out output outdir out_dir logdir log_dir logging_dir save_dir savedir "
        "results_folder results_dir result_dir run_dir workdir work_dir exp_dir "
        "experiment_dir checkpoint_dir checkpoints_dir ckpt_dir default_root_dir "
        "output_path save_path project run_name name o chkpt_dir chkpt_name"
    ),
    "resume": (
        "resume_from_checkpoint resume_from resume_checkpoint continue_train "
        "resume_training ckpt load load_milestone continue chkpt_path"
    ),
    "val_every": (
        "validation_steps eval_every eval_interval val_interval validate_every eval_steps"
        " validation_every val_check_interval eval_freq eval_step"
    ),
    "stop_when": "early_stopping early_stop early_stopping_metric stop_criterion",
    "patience": "early_stopping_patience early_stop_patience patience_epochs es_patience",
    "log_every": "log_interval logging_steps log_freq print_freq log_every_n_steps tick",
    "save_every": (
        "save_interval save_steps checkpointing_steps save_freq save_model_every "
        "checkpoint_every save_model_epochs save_and_sample_every snap ckpt_every "
        "save_period ckpt_interval chkpt_intv save_step"
    ),
    "keep_last": (
        "checkpoints_total_limit save_total_limit save_top_k keep_checkpoints max_checkpoints"
    ),
    "keep_best": (
        "save_best save_best_only best save_best_and_latest_only load_best_model_at_end monitor"
    ),
    "sample_every": (
        "save_and_sample_every sample_interval save_images_epochs save_image_every "
        "sample_freq calculate_fid_every image_intv sample_step"
    ),
    "sample_count": (
        "num_grid num_fid_samples_log eval_batch_size n_sample num_samples num_save_images"
    ),
    "sample_steps": (
        "sampling_timesteps num_inference_steps ddpm_num_inference_steps ddim_steps "
        "ddim_sampling_steps sampling_steps timestep_respacing num_sampling_steps n_steps"
        " subseq_size"
    ),
    "sample_guidance_scale": "guidance_scale cond_scale cfg_scale cfg guidance",
    "sample_sampler": "sampler sampling_method",
    "sample_seed": "sampling_seed",
    "seed": "random_seed manual_seed rng_seed seed_everything generator",
    "progress": "progress_bar pbar use_tqdm tqdm quiet silent show_progress disable_tqdm",
    "trackers": (
        "report_to logger tracker log_with wandb tensorboard use_wandb use_tensorboard "
        "with_tracking use_tb"
    ),
    "device": (
        "gpu gpus gpu_id gpu_ids cuda use_gpu devices cpu no_cuda use_cpu accelerator "
        "gpu_index use_cuda train_device eval_device"
    ),
    "mixed_precision": (
        "fp16 amp use_fp16 bf16 precision half use_bf16 use_amp mixed_precision_type "
        "dtype autocast fp32 tf32"
    ),
    "compile": "torch_compile use_compile compile_model",
    "deterministic": "cudnn_deterministic use_deterministic",
}
"""Ours → theirs."""

NOTES: dict[str, str] = {
    "lr_anneal_steps": (
        "there the rate falls to 0 over these steps; here also set {lr_schedule} to linear"
    ),
    "kimg": "counted here in optimizer steps: images / {batch_size}",
    "duration": "counted here in optimizer steps: images / {batch_size}",
    "microbatch": "here the number of parts that a batch is cut into, not the size of a part",
    "ema": "a decay per step: 0.5^({batch_size} / H) for a half-life of H images",
    "tick": "there in thousands of images, here in optimizer steps",
    "snap": "there in ticks, here in optimizer steps",
    "use_ema": "averages are always kept, and used for sampling",
    "quiet": "--no-progress, or progress=False",
    "silent": "--no-progress, or progress=False",
    "disable_tqdm": "--no-progress, or progress=False",
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
    "ema_inv_gamma": "it is 1 here",
    "chkpt_intv": "counted here in optimizer steps",
    "image_intv": "counted here in optimizer steps",
}
"""What to say beside the name: where the value differs too."""

MORE: tuple[str, ...] = (
    "max_nonfinite",
    "max_hours",
    "posthoc_every",
    "override",
    "save_async",
    "augment",
    "final_learning_rate_ratio",
    "cache_limit_mb",
    "channels_last",
    "val_max_images",
    "val_labels",
    "val_condition",
    "shards",
    "stall_minutes",
    "process_timeout_minutes",
    "cache",
    "posthoc_ema",
    "on_nonfinite",
    "keep_every",
)
"""Options of ours for which nobody has another word."""
