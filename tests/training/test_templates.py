"""Chat templates: pieces and contents joined are what transformers renders, and what is not understood is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from training.chats import CHATML, FAMILIES, GEMMA, LLAMA, turns
from xtoken.errors import XTokenError
from xtoken.training.conversations import ChatColumns, Conversation
from xtoken.training.templates import ChatTemplate, Rendered, chat_template_of
from xtoken.training.texts import conversations_from_list, texts_from_dataset, texts_from_files

SPECIALS = (("bos_token", "<s>"), ("eos_token", "</s>"))
CONTENTS = st.text(alphabet=" \n\tab{%}<|é世", max_size=8) | st.sampled_from(
    ["{{ bos_token }}", "</s>", "\ue0000\ue001"]
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIALS, "student")


def joined(rendered: Rendered, messages: list[dict[str, str]]) -> str:
    shown = [messages[s.message]["content"][s.begin : s.stop] for s in rendered.slots]
    return rendered.own[0] + "".join(a + b for a, b in zip(shown, rendered.own[1:], strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(st.lists(CONTENTS, min_size=1, max_size=5))
def test_the_pieces_joined_are_what_transformers_renders(name: str, contents: list[str]) -> None:
    family, messages = FAMILIES[name], turns(*contents)
    own = PreTrainedTokenizerFast(
        tokenizer_object=family.vocabulary._tokenizer, chat_template=family.template, **family.vocabulary.named_specials
    )
    rendered = family.chat.template.render(messages)
    assert joined(rendered, messages) == own.apply_chat_template(messages, tokenize=False)
    assert sorted(slot.message for slot in rendered.slots) == list(range(len(messages)))


def test_a_system_text_may_stand_in_a_users_turn() -> None:
    messages = turns("q", "yes", system="Be brief.")
    rendered = FAMILIES["mistral"].chat.template.render(messages)
    assert rendered.own == ("<s>[INST] ", "\n\n", " [/INST] ", "</s>")
    assert [slot.message for slot in rendered.slots] == [0, 1, 2]


def test_a_text_that_the_template_adds_is_its_own() -> None:
    source = "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + CHATML
    assert template(source).render(turns("q", "a")).own[0] == "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n"
    assert template(source).render(turns("q", "a", system="s")).own[0] == "<|im_start|>system\n"


EACH = "{% for m in messages %}"
MISUNDERSTOOD = {
    "drops": (
        EACH + "{% if m.role != 'system' %}{{ m.content }};{% endif %}{% endfor %}",
        r"leaves out .*message 0 \(sy",
    ),
    "repeats": (EACH + "{{ m.content }}{{ m.content }};{% endfor %}", r"takes apart or repeats .*message 0"),
    "lower case": (
        EACH + "{{ m.content | lower }};{% endfor %}",
        r"message 0 \(system\) that is not understood: .*'Be",
    ),
    "cuts": (
        EACH + "{{ m.content[:9] }};{% endfor %}",
        r"message 0 \(system\) that is not understood: .*'Be very brief",
    ),
    "depends": (EACH + "{% if 'Q' in m.content %}!{% endif %}{{ m.content }};{% endfor %}", r"message 1 \(user\)"),
    "adds": (
        EACH + "{{ m.content }};{% endfor %}{% if 'yes' in messages[-1].content %}!{% endif %}",
        r"message 2 \(as",
    ),
    "refuses": ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
    "fails": ("{{ messages[9].content.x }}", "refuses the conversation: "),
    "no Jinja": ("{% for %}", "refuses the conversation: "),
}


@pytest.mark.parametrize("case", MISUNDERSTOOD)
def test_what_is_not_understood_is_an_error_that_names_the_message(case: str) -> None:
    source, message = MISUNDERSTOOD[case]
    with pytest.raises(XTokenError, match=rf"student: its chat template .*{message}"):
        template(source).render(turns("Q", "yes", system="Be very brief."))


def test_a_template_cannot_leave_the_sandbox() -> None:
    with pytest.raises(XTokenError, match="refuses the conversation"):
        template("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}").render(turns("q"))


def test_keys_beside_role_and_content_are_ignored_unless_the_template_writes_them() -> None:
    messages = [{**m, "name": "Ada", "tool_calls": None} for m in turns("q", "yes")]
    assert template(CHATML).render(messages) == template(CHATML).render(turns("q", "yes"))
    naming = CHATML.replace("{{ m.role }}", "{{ m.role }}{{ m.name }}")
    with pytest.raises(XTokenError, match=r"writes other keys .*\(name\)"):
        template(naming).render(messages)


# -- where a template comes from ---------------------------------------------------------------------------------------


def found(folder: Path, path: Path | None = None) -> str:
    files = sorted(folder.iterdir())
    vocabulary = FAMILIES["chatml"].vocabulary
    return chat_template_of(files, vocabulary, None if path is None else str(path), who="teachers.0").source


def test_a_template_is_found_where_transformers_looks(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert found(tmp_path) == CHATML
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found(tmp_path) == LLAMA
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": GEMMA}))
    assert found(tmp_path) == GEMMA
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert found(tmp_path) == CHATML
    (tmp_path / "mine").write_text("{{ messages }}")
    assert found(tmp_path, tmp_path / "mine") == "{{ messages }}"


def test_no_template_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(XTokenError, match=r"teachers.0: its folder has no chat template .* teachers.0.chat_template"):
        found(tmp_path)
    with pytest.raises(XTokenError, match=r"teachers.0: cannot read the chat template"):
        found(tmp_path, tmp_path / "nowhere")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}))
    with pytest.raises(XTokenError, match="has the chat templates 'rag', and none called 'default'"):
        found(tmp_path)


def test_the_names_of_special_tokens_are_those_the_files_declare(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(FAMILIES["chatml"].vocabulary._json)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    vocabulary = type(FAMILIES["chatml"].vocabulary).from_pretrained(tmp_path)
    assert vocabulary.named_specials == {"eos_token": "<|im_end|>"}  # though <|endoftext|> is what ends a document


# -- where conversations come from -------------------------------------------------------------------------------------


def test_rows_of_every_kind_are_conversations() -> None:
    talk = turns("q", "a")
    assert Conversation.of(talk) == Conversation.of({"messages": talk}) == Conversation(tuple(talk))
    assert Conversation.of({"prompt": "q", "completion": "a"}) == Conversation(tuple(talk), 1)
    assert Conversation.of({"prompt": talk[:1], "completion": talk[1:]}) == Conversation(tuple(talk), 1)
    assert Conversation.from_json(Conversation(tuple(talk), 1).to_json()) == Conversation(tuple(talk), 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"a conversation is a list of messages, or has the keys .* has 'text'"),
        ({"messages": 5}, "expected a list of messages, got a int"),
        ([{"from": "human", "value": "x"}], "message 0 is a dict .*; expected an object with a role and a content"),
        ([{"role": "user", "content": None}], r"the content of message 0 \(user\) is a NoneType .* only text"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"content of message 0 \(user\) is a list"),
    ],
)
def test_what_is_no_conversation_is_told_with_its_number(row: Any, message: str) -> None:
    with pytest.raises(XTokenError, match=rf"document 1 \(counting from 0\): .*{message}"):
        conversations_from_list([turns("q"), row])


def test_files_and_data_sets_give_the_same_conversations(tmp_path: Path) -> None:
    talks = [turns("q", "a"), turns("é", "b\n", system="s"), []]
    expected = [Conversation(tuple(talk)).to_json() for talk in talks]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": 1, "messages": talk}) + "\n" for talk in talks))
    pq.write_table(pa.table({"messages": talks[:2], "id": [1, 2]}), tmp_path / "b.parquet")
    datasets.Dataset.from_dict({"messages": talks[:2]}).save_to_disk(str(tmp_path / "saved"))
    assert list(texts_from_files([tmp_path / "a.jsonl"], chat=ChatColumns()).read()) == expected
    assert expected[-1] == ""
    assert list(texts_from_files([tmp_path / "b.parquet"], chat=ChatColumns()).read()) == expected[:2]
    source = texts_from_dataset(str(tmp_path / "saved"), chat=ChatColumns())
    assert (list(source.read()), source.count) == (expected[:2], 2)


def test_columns_with_other_names_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": "a"}) + "\n" + json.dumps({"question": "q", "answer": None}))
    source = texts_from_files([file], chat=ChatColumns(("question", "answer")))
    assert list(source.read()) == [Conversation.of({"prompt": "q", "completion": "a"}).to_json(), ""]
    with pytest.raises(
        XTokenError, match=r"line 1 has no columns 'messages' or 'prompt' and 'completion'; there are 'q"
    ):
        list(texts_from_files([file], chat=ChatColumns()).read())
    assert source.key != texts_from_files([file], chat=ChatColumns(("answer", "question"))).key
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(XTokenError, match=r"a .txt file holds no conversations"):
        texts_from_files([tmp_path / "b.txt"], chat=ChatColumns())
