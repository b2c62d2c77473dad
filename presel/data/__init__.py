"""Sources of pools and benchmarks, and the files behind them.

A source (base class in `sources`) lists a pool's images (`listing`): `sources.LlavaJson` and `llava665k` from
an annotation file (`llava`, `json_records`), `image_folder`, `manifest` from a table, `webdataset` and
`hf_dataset` from archives (`packed_images`, `tar_files`), `sources.DigitScenes` from the built-in `digits`.
`images` opens and checks image files (`decoding`, `strip_metadata`, `signatures`). `checks` validates values,
`errors` has the error of a record, and `prompts` the chat templates.
"""
