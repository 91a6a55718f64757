rule prepare_data:
    """Decode a data set once into a file of tensors that all runs read."""
    output:
        f"{ROOT}/data/{{data}}.pt",
    log:
        f"{ROOT}/logs/data/{{data}}.txt",
    params:
        dataset=lambda wildcards: dataset_settings(wildcards),
        code=lambda wildcards: data_code(DATASETS[f"data/{wildcards.data}.pt"]),
    script:
        "../scripts/prepare_data.py"


def dataset_settings(wildcards):
    """What preparing depends on, and nothing else: augmentation and splits happen later."""
    dataset = DATASETS[f"data/{wildcards.data}.pt"]
    return {"name": dataset.name, "image_size": dataset.image_size}
