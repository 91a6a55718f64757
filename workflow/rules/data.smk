rule prepare_data:
    """Decode a data set once into a file of tensors that all runs read."""
    input:
        dataset_inputs,
    output:
        update(f"{ROOT}/data/{{data}}.pt"),
    log:
        f"{ROOT}/logs/data/{{data}}.txt",
    conda:
        "../../environment.yml"
    threads: 4  # that decode images; fewer where Snakemake has fewer cores
    params:
        dataset=lambda wildcards: dataset_settings(wildcards),
    script:
        "../scripts/prepare_data.py"
