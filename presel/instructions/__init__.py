"""Instructions written by models and people, requested only for images that are already chosen.

`ledger` records the requested images, then calls the `reveal` of a provider (base class in `provider`).
`annotations` looks instructions up in the pool's own file. The model providers share `generator` (prompts,
request digests, refusals and malformed answers): `local_model` runs a model with transformers, and
`chat_service` adds what services bill. Its two subclasses are `chat_api`, where `request_pool` sends requests
concurrently within a budget cap, through `client` (retries, masked keys) and `http` (deadlines); and
`batch_api`, which exchanges files with a service, as `label_studio` does with people (`batch_jobs` lists what
was sent). `answers` keeps all answers in `answers.jsonl`, so that no request is paid for twice.
"""
