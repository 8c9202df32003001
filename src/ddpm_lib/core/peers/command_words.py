"""Words for what the commands alone take."""

SAME: dict[str, str] = {
    "images": "image input input_dir init_image img image_dir picture pictures",
    "mask": "masks mask_path mask_image mask_dir",
    "run": (
        "checkpoint_dir ckpt_dir model_path model_dir run_dir model ckpt_path "
        "checkpoint_path pretrained_model_name_or_path network network_pkl logdir log_dir"
    ),
    "src": "source data data_dir input input_dir",
    "out": "output output_dir out_dir outdir dest save_dir",
    "output": "out output_dir outdir save_dir out_dir",
    "checkpoint": "ckpt ckpt_path checkpoint_path step milestone epoch load resume_from_checkpoint",
    "weights": "use_ema ema use_averaged no_ema model_type",
    "num": (
        "num_samples n_samples nsamples number count n num_images n_images sample_count "
        "n_imgs num_fid_samples eval_num fid_samples images num_gen amount samples"
    ),
    "num_samples": "num n_samples nsamples n",
    "variants": "num num_samples n_samples n num_images num_variants num_images_per_prompt",
    "fraction": "strength noise_level t_start denoising_strength denoise t0",
    "class_label": (
        "class classes label y class_idx class_labels class_id class_name class_cond labels"
    ),
    "class_conditional": (
        "class_cond conditional cond use_labels class_labels with_labels labels_cond"
    ),
    "preset": "arch model_size config_name model_name network model_config_name_or_path",
    "config": "config_file cfg_file yaml configs conf base c config_dir flagfile",
    "dry_run": "fast_dev_run dryrun check",
    "metrics": "metric scores compute_fid fid kid isc score",
    "reference": (
        "ref real real_data ref_path dataset_path gt fid_stats ref_batch real_path fid_cache"
    ),
    "features": "feature_extractor extractor backbone feature feature_layer dims",
    "sigma_rel": "ema_std sigma gamma std length",
    "vary": "grid sweep ablate param params",
}
"""Ours → theirs."""

NOTES: dict[str, str] = {}
"""What to say beside the name: where the value differs too."""
