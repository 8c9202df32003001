"""Words for the options of data."""

SAME: dict[str, str] = {
    "size": "image_size resolution img_size",
    "image_size": (
        "resolution size img_size imgsize imsize imgsz im_size image_resolution load_size"
        " crop_size input_size sample_size res large_size"
    ),
    "channels": (
        "in_channels image_channels img_channels num_channels_in input_channels in_chans "
        "n_channels convert_image_to"
    ),
    "data_root": "root dataroot dataset_root datasets_dir",
    "transform": "transforms augmentations preprocessing",
    "data": (
        "dataset dataset_name data_dir data_path data_root dataroot train_data_dir "
        "train_dir folder image_folder images_folder img_dir image_dir input_dir input "
        "path root source trainloader train_dataset"
    ),
    "dataset": "data dataset_name",
    "num_workers": (
        "workers dataloader_num_workers n_workers nworkers num_worker num_threads "
        "loader_workers j n_cpu num_cpus preprocessing_num_workers threads jobs"
    ),
    "horizontal_flip": (
        "random_flip flip hflip xflip mirror augment_horizontal_flip horizontal_flips"
    ),
    "files": "file_list filelist files_list image_list img_list list_file keep_list subset_file",
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
}
"""Ours → theirs."""

NOTES: dict[str, str] = {
    "center_crop": "its value 'crop' is the default",
    "convert_image_to": "1 for L, 3 for RGB, 4 for RGBA",
}
"""What to say beside the name: where the value differs too."""
