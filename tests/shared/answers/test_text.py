"""Short texts: where the answer stands, and what normalisation forgives."""

import re

import pytest

from specexit.data.answers import extract_answer, kind, same_answer

EXTRACTED = [
    (r"\boxed{Paris}", "Paris"),
    (r"\boxed{\text{the Eiffel Tower}}", r"\text{the Eiffel Tower}"),
    ("The answer is Paris.", "Paris"),
    ("Answer: Paris", "Paris"),
    ("**Final Answer:** Paris", "Paris"),
    ("The final answer is: Paris.", "Paris"),
    ("Answer = 42", "42"),
    ("**Answer:** x**2 + y**2", "x**2 + y**2"),
    ("#### Paris\nand more", "Paris"),
    ("The answer is Rome. No, the answer is Paris.\n", "Rome. No, the answer is Paris"),
    ("Answer: Rome\nAnswer: Paris", "Paris"),
    ('The answer is "Paris".', "Paris"),
    ("### Final Answer\n\nParis", "Paris"),
    ("**Final Answer**\n\nParis.\n", "Paris"),
    ("## Answer\n\nThe answer is Paris.", "Paris"),
    ("Final Answer:\n> Paris", "Paris"),
    ("Final Answer:\n- Paris", "Paris"),
    ("Final Answer:\n- 5", "- 5"),
    # full width
    ("Answer：北京", "北京"),
    ("**Answer：**北京", "北京"),
    ("**Answer:**Paris", "Paris"),
    ("The answer is 北京。", "北京"),
    # a heading of four signs
    ("#### Answer: Paris", "Paris"),
    ("#### **Final Answer**\n\nParis", "Paris"),
    ("#### The answer is Paris", "Paris"),
    ("#### Step 3: conclude\nSo it is.\n\n**Answer:** Paris", "Paris"),
    ("#### Paris\nThe answer is simple", "Paris"),
    # what begins, and what only introduces
    ("The answer is: **\nParis**", "Paris"),
    ("**Answer:**\n\n---\n\nParis", "Paris"),
    ("The answer is as follows:\nParis", "Paris"),
    ("Answer: Sure! Here it is:\nParis", "Paris"),
    ("Answer: (a) Paris\n(b) is wrong", "(a) Paris"),
    ("Answer: [1, 2", "[1, 2"),
    ("Answer: {", None),
    ("Answer:\n```\n```", None),
    ("I know the answer\nParis", None),
    ("Paris", None),
    (r"\boxed{", None),
    (r"\boxed{}", None),
    ("", None),
]

SAME = [
    ("Paris ✅", "Paris"),
    ("**Yes** ✔", "yes"),
    ("★ Paris", "Paris"),
    ("✓ True", "true"),
    ("12\ufffd", "12"),
    ("Paris. ✅", "Paris"),
    ("Yes.✅", "Yes"),
    ("Paris! ✅", "Paris"),
    ("(True) ✓", "True"),
    ('"Yes" ✅', "Yes"),
    ("✅ 42", "42"),
    ("✅Yes", "Yes"),
    ("北京。✅", "北京"),
    ("5% ✅", "5%"),
    ("5 € ✅", "5€"),
    ("90° ✓", "90°"),
    ("C++ ✅", "C++"),
    ("C# ✅", "C#"),
    ("[1, 2] ✅", "[1, 2]"),
    (r"\{1, 2\} ✅", r"\{1, 2\}"),
    ("「北京」✅", "北京"),
    ("✅ -5", "-5"),
    ("✅ −5", "-5"),
    ("✅ .5", ".5"),
    ("✅ €5", "5€"),
    ("✅ (3,4)", "(3,4)"),
    ("✅ [1, 2]", "[1, 2]"),
    ("✅ {1, 2}", "{1, 2}"),
    ('✅ "Paris"', "Paris"),
    ("✅ 「北京」", "北京"),
    ("Paris", "paris"),
    ("The Eiffel Tower", "eiffel tower"),
    ("Paris.", "Paris"),
    ("  Paris\n", "Paris"),
    ("“Paris”", '"Paris"'),
    ("don’t", "don't"),
    ("New   York", "new york"),
    ("Café", "Café"),
    ("ﬁsh", "fish"),
    ("1,000", "1000"),
    ("an apple", "apple"),
    ("well-known", "well known"),
    ("U.S.", "U.S"),
    ("U.S.", "US"),
    ("the U.S.A.", "USA"),
    ("Washington, D.C", "Washington DC"),
    ("J.K. Rowling", "J. K. Rowling"),
    ("J.K. Rowling", "JK Rowling"),
    ("J. K. Rowling", "J K Rowling"),
    ("−5", "-5"),
    (r"\text{Paris}", "Paris"),
    ("**Paris**", "Paris"),
    ("Straße", "STRASSE"),
    ("Paris, France", "Paris France"),
    ("Paris - France", "Paris, France"),
    ("COVID-19", "COVID 19"),
    ("*The* **Eiffel** Tower", "Eiffel Tower"),
    ("* Paris", "Paris"),
    (r"\textbf{\text{Paris}}", "Paris"),
    ("The “Eiffel” Tower", "eiffel tower"),
    # a sign, a minus and a mathematical symbol, however they are spaced
    ("- 5", "-5"),
    ("–5", "-5"),
    ("-$5", "-5"),
    ("-(5)", "-5"),
    ("x - 1", "x-1"),
    ("x = - y", "x=-y"),
    ("x ** 2", "x**2"),
    ("x≥3", "x ≥ 3"),
    ("x²", "x^2"),
    ("x^{2}", "x^2"),
    (r"\{1, 2\}", "{ 1, 2 }"),
    ("x + 1", "x+1"),
    ("3*x**2 + 2*x - 1", "3*x**2+2*x-1"),
    ("a / b", "a/b"),
    ("10 %", "10%"),
    # a list
    ("[5,100]", "[5, 100]"),
    ("(12,345)", "(12, 345)"),
    ("[[5,100],[7,200]]", "[[5, 100], [7, 200]]"),
    ("[1, 2]", "1, 2"),
    ("['a', 'b']", '["a","b"]'),
    ("Paris [France]", "Paris (France)"),
    ("1,000 people!", "1000 people"),
    # brackets in a formula
    ("(3 + 4) * 2", "(3+4)*2"),
    ("Paris (France)", "Paris, France"),
    ("10 €", "10€"),
    ("5 €", "€5"),
    ("-5 €", "-€5"),
    ("from 5€ to 10 €", "from €5 to €10"),
    # units right behind thousands
    ("1,000km", "1000km"),
    ("1,000,000元", "1000000元"),
    # one sign in several forms, and what nobody sees
    ("F♯ minor", "F# minor"),
    ("25 °C", "25 C"),
    ("Lego®", "lego"),
    ("❤️", "❤"),
    ("½ cup", "1/2 cup"),
    ("2½ cups", "2 1/2 cups"),
    ("٤٢", "42"),
    ("٣٫٥", "3.5"),
    ("１，２", "1, 2"),
    ("１，０００", "1,000"),
    ("北京。", "北京"),
    ("क्\u200dया", "क्या"),
    ("می\u200cخواهم", "میخواهم"),
    ("co\u00adoperate", "cooperate"),
    ("foo\u200bbar", "foobar"),
]

DIFFERENT = [
    ("A: ✓", "A: ✗"),
    ("A ✓", "A ✗"),
    ("A: ✓", "A:"),
    ("✗✓", "✗"),
    ("✗ ✓", "✗"),
    ("✅", ""),
    ("✅✅", "✅"),
    ("✅ -5", "5"),
    ("K♠ ✓", "K♥"),
    ("★★★", "★★"),
    ("★★★ hotel", "★★ hotel"),
    ("★★★☆☆ Good", "★★☆☆☆ Good"),
    ("□ done", "☑ done"),
    ("□ done", "■ done"),
    ("○ wins", "● wins"),
    ("✓", "✗"),
    ("Paris", "Rome"),
    ("3.5", "35"),
    ("-5", "5"),
    ("1.5", "1 5"),
    ("C++", "C"),
    ("C#", "C"),
    ("50%", "50"),
    ("a", "the"),
    ("!", "?"),
    ("", "a"),
    ("New York", "NewYork"),
    ("foo.bar", "foobar"),
    ("A. B", "AB"),
    ("A, B", "AB"),
    ("a.5", "a5"),
    ("10", "1 0"),
    # signs
    ("- 5", "5"),
    ("–5", "5"),
    ("-.5", ".5"),
    ("-€5", "€5"),
    ("-$5", "$5"),
    ("-(5)", "(5)"),
    ("-π", "π"),
    ("-x**2 + 3*x", "x**2 + 3*x"),
    ("x = -y", "x = y"),
    ("2*x - y", "2*x y"),
    ("5, -3", "5 - 3"),
    ("10 - 3", "10 3"),
    (r"-\frac{1}{2}", r"\frac{1}{2}"),
    # mathematical symbols
    ("x ≥ 3", "x ≤ 3"),
    ("a ≠ b", "a b"),
    ("~p", "p"),
    ("x**2 + 1", "x*2 + 1"),
    ("2*3", "23"),
    ("10²", "102"),
    (r"\frac{1}{23}", r"\frac{12}{3}"),
    ("{1}{2}", "12"),
    ("a→b", "b→a"),
    ("5!", "5"),
    ("x != 3", "x = 3"),
    ("x + 1", "x 1"),
    # lists
    ("[5,100]", "[5100]"),
    ("[[1],[2]]", "[[1,2]]"),
    ("[[1,2]]", "[1,2]"),
    ("[[1, 2], [3]]", "[[1], [2, 3]]"),
    # "a" that is no article
    ("['a', 'b', 'c']", "['b', 'c']"),
    ("['a', 'cat']", "['cat']"),
    ("a b c", "b a c"),
    ("blood type A", "blood type"),
    ("A# A# #B", "#A A# #B"),
    # brackets in a formula
    ("(3 + 4) * 2", "3 + 4 * 2"),
    ("2*(3+4)", "2*3+4"),
    ("(x+1)²", "x+1²"),
    # currencies
    ("€10", "$10"),
    ("£5", "¥5"),
    # symbols
    ("E♭ major", "E major"),
    ("B♭", "B"),
    ("K♠", "K♥"),
    ("A: ✓, B: ✗", "A: ✗, B: ✓"),
    ("🍎=3, 🍌=4", "🍌=3, 🍎=4"),
    ("△ABC", "□ABC"),
    ("👍🏽 all", "👍🏿 all"),
    ("\U0001f3f4\U000e0067\U000e0062\U000e0065 won", "\U0001f3f4\U000e0067\U000e0062\U000e0073 won"),  # flags
    ("5‰", "5"),
    ("٥٪", "5"),
    # numbers
    ("2½", "21/2"),
    ("x½", "x1/2"),
    ("5，100", "5100"),
    ("1、000", "1000"),
    ("٣٫٥", "3, 5"),
    # vowel signs
    ("कि", "का"),
]


@pytest.mark.parametrize(("text", "answer"), EXTRACTED)
def test_where_the_answer_stands(text, answer):
    assert extract_answer(text, "text") == answer


BLOCKS = [
    "The answer is:\n```\n@\n```",
    "Answer:\n```python\n@\n```\nIt is in France.",
    "Answer: ```@```",
    "Answer:\n~~~\n@\n~~~",
    'Answer:\n"""\n@\n"""',
    "Answer:\n$$\n@\n$$",
    "Answer:\n\\[\n@\n\\]",
    "Answer:\n\\begin{align*}\n@\n\\end{align*}",
    "Answer:\n```latex\n\\begin{array}{l}\n@\n\\end{array}\n```",
    "Answer:\n<pre>\n@\n</pre>",
    "## Answer\n\n```\n@\n```\n",
    "####\n```\n@\n```",
    "#### Answer\n\n```\n@\n```",
]


@pytest.mark.parametrize("form", BLOCKS)
def test_an_answer_in_a_block_is_what_the_block_holds(form):
    assert extract_answer(form.replace("@", "Paris"), "text") == "Paris"
    assert extract_answer(form.replace("@", "{1,\n 2}"), "text") == "{1, 2}"


@pytest.mark.parametrize(("opens", "closes"), [("{", "}"), ("[", "]"), ("[{", "}]")])
def test_a_list_on_several_lines_is_read_to_its_end(opens, closes):
    said = [extract_answer(f'Answer:\n{opens}\n  "x": {city}\n{closes}\nDone.', "text") for city in ("Paris", "Rome")]
    assert said == [f'{opens} "x": {city} {closes}' for city in ("Paris", "Rome")]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_texts(a, b):
    assert same_answer(a, b, "text")
    assert same_answer(b, a, "text")


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_texts(a, b):
    assert not same_answer(a, b, "text")
    assert not same_answer(b, a, "text")


def test_a_reference_is_the_answer_alone():
    """One as a response states it was taken, and no answer was ever right."""
    for stated in (r"\boxed{Paris}", "It is Paris.\n#### Paris", "Answer: Paris", "**Final answer:** Paris"):
        assert re.search("alone: 'Paris'$", kind("text").why_no_reference(stated) or ""), stated
    for alone in ("Paris", "The Answer Is Love", "answer", "C#", "the answer to it: love"):
        assert kind("text").why_no_reference(alone) is None
