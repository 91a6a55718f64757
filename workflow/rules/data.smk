rule prepare_data:
    """Decode a data set once into a file of tensors that all runs read."""
    output:
        f"{ROOT}/data/{{data}}.pt",
    log:
        f"{ROOT}/logs/data/{{data}}.txt",
    conda:
        "../../environment.yml"
    params:
        dataset=lambda wildcards: dataset_settings(wildcards),
        code=lambda wildcards: data_code(DATASETS[f"data/{wildcards.data}.pt"]),
    script:
        "../scripts/prepare_data.py"
