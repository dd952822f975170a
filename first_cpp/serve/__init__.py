"""The OpenAI-compatible server: llama_cpp.server's requests and routes, one model at a time, one answer at a time.

A request's path:

    access.AccessControl     key, origin, size of the body
    app                      the route, and the body checked by its class in `requests` or `responses`
    prepare                  a Job, or an ApiError: everything that can be refused is refused here
    answer_response          AnswerResponse waits for its turn in the Worker's RequestQueue
    worker                   RunningJob runs the job in the one worker thread
    hosted_models            the model that it asks for, loaded there where it is not yet
    reasoning, tool_calls    what the model wrote, parted into reasoning, text and calls
    response_events          the same as /v1/responses has it
    answer_response          sends the answer as JSON, or as server-sent events

`command` has the options and puts these together, `process` ends them, `served_model` is a model under its name.
"""
