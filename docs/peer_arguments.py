"""The arguments of four libraries, as their users write them, for the page on switching.

Each was read in the sources of the version that is named.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PeerPart:
    """Arguments of one function, class or program.

    Attributes:
        name: What takes them.
        words: Their names, in the order of the source.
    """

    name: str
    words: str


@dataclass(frozen=True)
class Peer:
    """A library.

    Attributes:
        title: Its name and version.
        file: A page of ours about it, below `docs/`.
        first: What to do first, in a paragraph.
        parts: What takes arguments.
    """

    title: str
    file: str
    first: str
    parts: tuple[PeerPart, ...]


PEERS = (
    Peer(
        "lucidrains/denoising-diffusion-pytorch 2.3.4",
        "compat.md",
        "A script runs as it is with `from ddpm_lib.compat.lucidrains import Unet, GaussianDiffusion, Trainer`, milestones included. To leave the old names"
        " behind, this is what its arguments are called here.",
        (
            PeerPart(
                "Unet",
                "dim init_dim dim_mults channels self_condition learned_variance learned_sinusoidal_cond random_fourier_features learned_sinusoidal_dim"
                " sinusoidal_pos_emb_theta dropout attn_dim_head attn_heads full_attn flash_attn",
            ),
            PeerPart(
                "GaussianDiffusion",
                "image_size timesteps sampling_timesteps objective beta_schedule schedule_fn_kwargs ddim_sampling_eta auto_normalize"
                " offset_noise_strength min_snr_loss_weight min_snr_gamma immiscible",
            ),
            PeerPart(
                "Trainer",
                "diffusion_model folder train_batch_size gradient_accumulate_every augment_horizontal_flip train_lr train_num_steps ema_update_every ema_decay"
                " adam_betas save_and_sample_every num_samples results_folder amp mixed_precision_type split_batches convert_image_to calculate_fid"
                " inception_block_idx max_grad_norm num_fid_samples save_best_and_latest_only",
            ),
        ),
    ),
    Peer(
        "diffusers 0.42, examples/unconditional_image_generation/train_unconditional.py",
        "interop.md",
        "`ddpm convert DIFFUSERS_FOLDER runs/theirs` makes a run of a trained `UNet2DModel`; `ddpm export RUN OUT --to diffusers` goes back.",
        (
            PeerPart(
                "train_unconditional.py",
                "dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir overwrite_output_dir cache_dir resolution center_crop random_flip"
                " train_batch_size eval_batch_size dataloader_num_workers num_epochs save_images_epochs save_model_epochs gradient_accumulation_steps learning_rate"
                " lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma ema_power ema_max_decay push_to_hub"
                " hub_token hub_model_id hub_private_repo logger logging_dir local_rank mixed_precision prediction_type ddpm_num_steps ddpm_num_inference_steps"
                " ddpm_beta_schedule checkpointing_steps checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention"
                " preserve_input_precision",
            ),
            PeerPart(
                "DDPMScheduler",
                "num_train_timesteps beta_start beta_end beta_schedule trained_betas variance_type clip_sample prediction_type thresholding"
                " dynamic_thresholding_ratio clip_sample_range sample_max_value timestep_spacing steps_offset rescale_betas_zero_snr",
            ),
        ),
    ),
    Peer(
        "openai/improved-diffusion (1bc7bbb)",
        "interop.md",
        "Its flags can be handed to `ddpm convert` as they were (`--flags \"--image_size 64 …\"`), beside the checkpoint.",
        (
            PeerPart(
                "image_train.py",
                "data_dir schedule_sampler lr weight_decay lr_anneal_steps batch_size microbatch ema_rate log_interval save_interval resume_checkpoint use_fp16"
                " fp16_scale_growth",
            ),
            PeerPart(
                "model and diffusion",
                "image_size num_channels num_res_blocks num_heads num_heads_upsample attention_resolutions dropout learn_sigma sigma_small class_cond"
                " diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps rescale_learned_sigmas use_checkpoint use_scale_shift_norm",
            ),
            PeerPart("image_sample.py, image_nll.py", "clip_denoised num_samples batch_size use_ddim model_path"),
        ),
    ),
    Peer(
        "NVlabs/edm (008a4e5)",
        "interop.md",
        "Its pickles hold code and are not opened; docs/interop.md has the two steps. The process is `GaussianDiffusion(…, parametrization=\"edm\", weighting=\"edm\")`.",
        (
            PeerPart(
                "train.py",
                "outdir data cond arch precond duration batch batch_gpu cbase cres lr ema dropout augment xflip fp16 ls bench cache workers desc nosubdir tick snap"
                " dump seed transfer resume dry_run",
            ),
            PeerPart(
                "generate.py",
                "network outdir seeds subdirs class batch steps sigma_min sigma_max rho S_churn S_min S_max S_noise solver disc schedule scaling",
            ),
        ),
    ),
)

ANSWERS = {
    "folder": "the second argument of `Trainer`, the first of `ddpm train`",
    "dataset_name": "the second argument of `Trainer`, the first of `ddpm train`",
    "train_data_dir": "the second argument of `Trainer`, the first of `ddpm train`",
    "data_dir": "the second argument of `Trainer`, the first of `ddpm train`",
    "data": "the second argument of `Trainer`, the first of `ddpm train`",
    "model_config_name_or_path": "`Unet(…)`, or `--preset`; a network of diffusers itself goes into `GaussianDiffusion(model)`",
    "class_cond": "`class_conditional` of `ddpm train`, `num_classes` of `Unet`",
    "model_path": "the run, first argument of `ddpm sample` and `ddpm evaluate`",
    "network": "the run, first argument of `ddpm sample`",
    "arch": "another class: `Unet` for the DDPM++ family, `ddpm_lib.nn.EdmUnet` for its network exactly",
    "precond": "`parametrization`: `\"edm\"`; `vp` and `ve` are `\"eps\"` with their schedules",
    "batch_gpu": "`accumulation_steps`",
    "cbase": "`dim`",
    "cres": "`dim_mults`",
    "ls": "`on_nonfinite`, and torch's GradScaler in fp16: losses need no scaling in bf16",
    "bench": "torch's own setting, `torch.backends.cudnn.benchmark`",
    "desc": "`output_dir`",
    "nosubdir": "a run lies in `output_dir` itself",
    "dump": "`save_every`: every checkpoint has all that is needed to go on",
    "transfer": "`init_from`",
    "dry_run": "`ddpm estimate` with the options of `ddpm train`",
    "subdirs": "samples of a call lie in one folder, or one `.npz`",
    "class": "`class_label` of `ddpm sample`",
    "sigma_min": "`spacing_options`, for the spacing `karras`",
    "sigma_max": "`spacing_options`, for the spacing `karras`",
    "rho": "`spacing_options`, for the spacing `karras`",
    "S_churn": "`sampler_options` of `heun`",
    "S_min": "`sampler_options` of `heun`",
    "S_max": "`sampler_options` of `heun`",
    "S_noise": "`sampler_options` of `heun`",
    "disc": "`spacing`",
    "scaling": "no counterpart: samples follow the schedule that was trained; α² + σ² = 1",
}
"""Words that are no options here, or not of those four groups → what they are."""
