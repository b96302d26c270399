# Which model, and where sessions lie. `perdure chat` in this directory uses it.
default_model = "local/smollm2"      # a small model on this machine: no key, no network (perdure local install)
sessions_dir  = ".a3s/sessions"

# Any OpenAI-compatible server; the key stays in the environment and is written nowhere.
# default_model = "openai/gpt-4o"
# providers {
#   name    = "openai"
#   api_key = env("OPENAI_API_KEY")
# }
