"""The OpenAI-compatible server: llama_cpp.server's requests and routes, one model, one answer at a time.

A request's path:

    access.AccessControl     key, origin, size of the body
    app                      the route, and the body checked by its class in `requests`
    prepare                  a Job, or an ApiError: everything that can be refused is refused here
    answer_response          AnswerResponse waits for its turn in the Worker's RequestQueue
    worker                   RunningJob runs the job in the one worker thread
    answer_response          sends the answer as JSON, or as server-sent events

`command` has the options and puts these together, `process` ends them, `served_model` is the model under its name.
"""
