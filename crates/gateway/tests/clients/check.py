"""OpenAI's Python client, unmodified, against a running gateway: check.py BASE_URL MODEL"""

import sys

import openai

base, model = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base, api_key="secret", max_retries=0)
MESSAGES = [{"role": "user", "content": "Name three colours."}]


def chat(**more):
    return client.chat.completions.create(**{"model": model, "messages": MESSAGES, "max_tokens": 24, **more})


def refused(kind, **more):
    try:
        chat(**more)
    except kind as e:
        return e
    raise AssertionError(f"{more} was not refused")


# models
assert model in [m.id for m in client.models.list()], "the list has the model"
assert client.models.retrieve(model).owned_by == "sworn"

# a whole answer
greedy = chat(temperature=0)
text = greedy.choices[0].message.content
assert greedy.object == "chat.completion" and greedy.id.startswith("chatcmpl-") and greedy.model == model
assert greedy.choices[0].message.role == "assistant" and text
usage = greedy.usage
assert usage.completion_tokens <= 24 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
assert greedy.choices[0].finish_reason in ("stop", "length")
assert greedy.sworn["receipts"][0]["receiptDigest"].startswith("0x")
raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=4, temperature=0)
assert raw.headers["x-sworn-receipt"].startswith("0x") and raw.headers["x-request-id"]

# the same in pieces
pieces = list(chat(temperature=0, stream=True, stream_options={"include_usage": True}))
assert pieces[0].choices[0].delta.role == "assistant"
assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == text
assert pieces[-1].choices == [] and pieces[-1].usage == usage
assert pieces[-2].choices[0].finish_reason == greedy.choices[0].finish_reason
assert all(p.usage is None for p in pieces[:-1])

# lengths
short = chat(temperature=0, max_tokens=3)
assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
assert chat(temperature=0, max_tokens=None, max_completion_tokens=3).usage.completion_tokens == 3

# stop strings, also ones that span tokens, never show
stop = text[4:9]
for stopped in (chat(temperature=0, stop=stop), chat(temperature=0, stop=["\u0000none", stop])):
    assert stopped.choices[0].message.content == text[: text.index(stop)], stopped
    assert stopped.choices[0].finish_reason == "stop"
streamed = "".join(
    p.choices[0].delta.content or "" for p in chat(temperature=0, stop=stop, stream=True) if p.choices
)
assert streamed == text[: text.index(stop)]

# a seed repeats an answer, another gives another
a, b, c = (chat(temperature=1, top_p=0.95, seed=s).choices[0].message.content for s in (7, 7, 8))
assert a == b and a != c
extra = chat(temperature=0.8, seed=1, extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1})
assert extra.sworn["seed"] == "0x" + "00" * 31 + "01"

# plain text
plain = client.completions.create(model=model, prompt="The sky is", max_tokens=8, temperature=0)
assert plain.object == "text_completion" and plain.usage.completion_tokens <= 8
tokens = client.completions.create(model=model, prompt="The sky is", max_tokens=8, temperature=0, stream=True)
assert "".join(p.choices[0].text for p in tokens) == plain.choices[0].text

# refusals are the client's own exceptions
assert refused(openai.NotFoundError, model="nobody").code == "model_not_found"
assert refused(openai.BadRequestError, temperature=3).param == "temperature"
assert refused(openai.BadRequestError, n=2).param == "n"
assert refused(openai.BadRequestError, tools=[{"type": "function", "function": {"name": "f"}}]).param == "tools"
assert refused(openai.BadRequestError, extra_body={"temprature": 1}).code == "unknown_parameter"
assert refused(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"
wrong = openai.OpenAI(base_url=base, api_key="wrong", max_retries=0)
try:
    wrong.models.list()
    raise AssertionError("a wrong key was taken")
except openai.AuthenticationError as e:
    assert e.code == "invalid_api_key"

# leaving in the middle does no harm
stream = chat(temperature=0, stream=True, max_tokens=200)
next(iter(stream))
stream.close()
assert chat(temperature=0).choices[0].message.content == text
print("python client ok")
