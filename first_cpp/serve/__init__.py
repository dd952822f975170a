"""The OpenAI-compatible server: llama_cpp.server's requests and routes, one model, one answer at a time.

A request's path: `Guard` (key, origin, body size) -> `app` (routes) -> `prepare` (is the request answerable?) ->
`AnswerResponse` (waits in the `Line`, makes the answer in the worker thread, sends it).
"""
