"""Words for the options of a network."""

SAME: dict[str, str] = {
    "dim": (
        "model_channels num_channels base_channels hidden_dim hidden_size ch base_dim nf "
        "width block_out_channels model_dim num_features init_dim hid_channels "
        "num_filters"
    ),
    "dim_mults": (
        "channel_mult channel_mults ch_mult channel_multiplier dim_mult ch_mults "
        "ch_multipliers channel_multipliers"
    ),
    "blocks_per_level": (
        "num_res_blocks layers_per_block num_resnet_blocks num_blocks n_res_blocks "
        "res_blocks num_res_layers"
    ),
    "attention_levels": (
        "attention_resolutions attn_resolutions full_attn attn attention attn_layers "
        "apply_attn down_block_types up_block_types"
    ),
    "heads": "num_heads attn_heads n_heads attention_heads num_attention_heads",
    "head_dim": "num_head_channels attn_dim_head attention_head_dim dim_head channels_per_head",
    "heads_up": "num_heads_upsample",
    "groups": "norm_num_groups resnet_block_groups num_groups gn_groups",
    "num_classes": "num_class_embeds n_classes nclasses class_dim label_dim class_embed_type",
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
    "out_channels": "out_dim out_ch channels_out",
    "low_res_factor": "sr_factor upscale_factor upscale small_size",
    "dropout": "drop_rate dropout_rate",
    "time_dim": "time_embedding_dim time_embed_dim",
    "time_order": "flip_sin_to_cos",
    "mid_attention": "mid_block_type add_attention",
    "down_padding": "downsample_padding",
    "resample": "downsample_type upsample_type resample_with_conv resblock_updown",
    "patch_size": "block_size",
    "time_scale": "rescale_timesteps",
    "norm_eps": "eps",
}
"""Ours → theirs."""

NOTES: dict[str, str] = {
    "attention_resolutions": "here levels are named, 0 the finest, not resolutions",
    "attn_resolutions": "here levels are named, 0 the finest, not resolutions",
    "use_scale_shift_norm": "its value is 'scale_shift'",
    "down_block_types": "here levels are named, 0 the finest: those with Attn in their names",
    "up_block_types": "here levels are named, 0 the finest: those with Attn in their names",
    "apply_attn": "here levels are named, 0 the finest: (1,) for [False, True]",
    "block_out_channels": "its first entry; {dim_mults} are the entries divided by it",
    "flip_sin_to_cos": "'cos_sin' for True, 'sin_cos' for False",
    "mid_block_type": "'norm' for UNetMidBlock2D",
    "add_attention": "'none' for False",
    "downsample_padding": "'symmetric' for 1, 'asymmetric' for 0",
    "resample_with_conv": "'conv' for True, 'pool' for False",
    "resblock_updown": "its value is 'resblock'",
    "downsample_type": "its value is 'conv' or 'resblock'",
    "upsample_type": "its value is 'conv' or 'resblock'",
    "resnet_time_scale_shift": "'add' for default, 'scale_shift' for scale_shift",
    "rescale_timesteps": "its value is 1000 / {timesteps}",
    "small_size": "the large size divided by the small one",
    "class_embed_type": "leave it out: classes are embedded by a table",
    "init_dim": "the first convolution is as wide as {dim}",
    "full_attn": "here levels are named, 0 the finest: (2,) for (False, False, True)",
}
"""What to say beside the name: where the value differs too."""

MORE: tuple[str, ...] = (
    "low_res_max_noise",
    "low_res_drop_prob",
    "scale_skips",
    "augment_dim",
    "freq_shift",
    "dims",
)
"""Options of ours for which nobody has another word."""
