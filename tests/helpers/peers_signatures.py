"""The arguments and flags of other libraries, as their published sources have them."""

from __future__ import annotations

LUCIDRAINS = {  # denoising-diffusion-pytorch 2.3.4
    "Unet": (
        "dim init_dim out_dim dim_mults channels self_condition learned_variance "
        "learned_sinusoidal_cond random_fourier_features learned_sinusoidal_dim "
        "sinusoidal_pos_emb_theta dropout attn_dim_head attn_heads full_attn flash_attn"
    ),
    "GaussianDiffusion": (
        "model image_size timesteps sampling_timesteps objective beta_schedule "
        "schedule_fn_kwargs ddim_sampling_eta auto_normalize offset_noise_strength "
        "min_snr_loss_weight min_snr_gamma immiscible"
    ),
    "Trainer": (
        "diffusion_model folder train_batch_size gradient_accumulate_every "
        "augment_horizontal_flip train_lr train_num_steps ema_update_every ema_decay adam_betas "
        "save_and_sample_every num_samples results_folder amp mixed_precision_type "
        "split_batches convert_image_to calculate_fid inception_block_idx max_grad_norm "
        "num_fid_samples save_best_and_latest_only"
    ),
    "sample": "batch_size return_all_timesteps",
}
DIFFUSERS = {  # 0.42
    "Unet": (
        "sample_size in_channels out_channels center_input_sample time_embedding_type "
        "time_embedding_dim freq_shift flip_sin_to_cos down_block_types mid_block_type "
        "up_block_types block_out_channels layers_per_block mid_block_scale_factor "
        "downsample_padding downsample_type upsample_type dropout act_fn attention_head_dim "
        "norm_num_groups attn_norm_num_groups norm_eps resnet_time_scale_shift add_attention "
        "class_embed_type num_class_embeds num_train_timesteps"
    ),
    "GaussianDiffusion": (
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas variance_type "
        "clip_sample prediction_type thresholding dynamic_thresholding_ratio clip_sample_range "
        "sample_max_value timestep_spacing steps_offset rescale_betas_zero_snr set_alpha_to_one"
    ),
    "sample": (
        "batch_size generator num_inference_steps output_type return_dict eta "
        "use_clipped_model_output"
    ),
    "train": (  # examples/unconditional_image_generation/train_unconditional.py
        "dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir "
        "overwrite_output_dir cache_dir resolution center_crop random_flip train_batch_size "
        "eval_batch_size dataloader_num_workers num_epochs save_images_epochs save_model_epochs "
        "gradient_accumulation_steps learning_rate lr_scheduler lr_warmup_steps adam_beta1 "
        "adam_beta2 adam_weight_decay adam_epsilon use_ema ema_inv_gamma ema_power ema_max_decay "
        "push_to_hub hub_token hub_model_id hub_private_repo logger logging_dir local_rank "
        "mixed_precision prediction_type ddpm_num_steps ddpm_num_inference_steps "
        "ddpm_beta_schedule checkpointing_steps checkpoints_total_limit resume_from_checkpoint "
        "enable_xformers_memory_efficient_attention preserve_input_precision"
    ),
}
OPENAI_MODEL = (
    "image_size num_channels num_res_blocks num_heads num_heads_upsample num_head_channels "
    "attention_resolutions channel_mult dropout class_cond use_checkpoint use_scale_shift_norm "
    "resblock_updown use_fp16 use_new_attention_order learn_sigma sigma_small diffusion_steps "
    "noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps "
    "rescale_learned_sigmas large_size small_size"
)
OPENAI = {  # improved-diffusion and guided-diffusion
    "Unet": (
        "image_size in_channels model_channels out_channels num_res_blocks "
        "attention_resolutions dropout channel_mult num_classes use_checkpoint use_fp16 num_heads "
        "num_head_channels num_heads_upsample use_scale_shift_norm resblock_updown "
        "use_new_attention_order dims"
    ),
    "GaussianDiffusion": (
        "betas model_mean_type model_var_type loss_type rescale_timesteps learn_sigma sigma_small "
        "noise_schedule timestep_respacing use_kl predict_xstart rescale_learned_sigmas"
    ),
    "train": (
        "data_dir schedule_sampler lr weight_decay lr_anneal_steps batch_size microbatch ema_rate "
        f"log_interval save_interval resume_checkpoint use_fp16 fp16_scale_growth {OPENAI_MODEL}"
    ),
    "sample": "clip_denoised num_samples batch_size use_ddim",
    "ddpm sample": (
        "num_samples batch_size use_ddim model_path base_samples classifier_path "
        "classifier_scale class_cond image_size timestep_respacing use_fp16"
    ),
}
DDPM_TORCH = {
    "Unet": (
        "in_channels hid_channels out_channels ch_multipliers num_res_blocks apply_attn "
        "time_embedding_dim drop_rate resample_with_conv"
    ),
    "GaussianDiffusion": "betas model_mean_type model_var_type loss_type",
    "Trainer": (
        "epochs trainloader scheduler num_accum use_ema grad_norm shape device chkpt_intv "
        "image_intv num_save_images ema_decay distributed rank"
    ),
    "train": (
        "dataset root epochs lr beta1 beta2 batch_size num_accum block_size timesteps "
        "beta_schedule beta_start beta_end model_mean_type model_var_type loss_type num_workers "
        "train_device eval_device image_dir image_intv num_save_images config_dir chkpt_dir "
        "chkpt_name chkpt_intv seed resume chkpt_path eval eval_total_size eval_batch_size use_ema "
        "use_ddim skip_schedule subseq_size ema_decay distributed rigid_launch num_gpus dry_run"
    ),
}
PYTORCH_DDPM = {
    "Unet": "T ch ch_mult attn num_res_blocks dropout",
    "GaussianDiffusion": "model beta_1 beta_T T mean_type var_type img_size",
    "train": (
        "train eval ch ch_mult attn num_res_blocks dropout beta_1 beta_T T mean_type var_type lr "
        "grad_clip total_steps img_size warmup batch_size num_workers ema_decay parallel logdir "
        "sample_size sample_step save_step eval_step num_images fid_use_torch fid_cache"
    ),
}
PEERS = {
    "lucidrains": LUCIDRAINS,
    "diffusers": DIFFUSERS,
    "openai": OPENAI,
    "ddpm-torch": DDPM_TORCH,
    "pytorch-ddpm": PYTORCH_DDPM,
}
