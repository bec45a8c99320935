"""Numbers, with their units and in words: a table of pairs that are or are not the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specexit.data.answers import plainly_same, same_answer

SAME = [
    ("042", "42"),
    ("-7", "-07"),
    ("0.5", "1/2"),
    (r"\frac{1}{2}", "0.5"),
    ("B", "B"),
    # thousands separators
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    (r"1\,000\,000", "1000000"),
    ("12,345.50", "12345.5"),
    ("10, 000", "10000"),
    (r"11,\! 111,\! 100", "11,111,100"),
    (r"111, \! 111, \! 111", r"111{,} 111{,} 111"),
    ("81, 256", "256, 81"),
    ("12, 144", r"\{12,144\}"),
    ("x=2, 100", "100, 2"),
    (r"\frac{20,000}{\pi}", r"\frac{20000}{\pi}"),
    (r"\frac{12}{5,\!525}", r"\dfrac{12}{5{,}525}"),
    (r"1,000\sqrt{3}", r"1000\sqrt{3}"),
    ("1,200x+3", "3+1200x"),
    ("(1{,}000, 2{,}000)", "(1000, 2000)"),
    ("[1,100)", r"1\le x<100"),
    # money, units, degrees, words
    (r"\$18", "18"),
    ("$18.00", "18"),
    ("18 dollars", "18"),
    (r"10\text{ cm}", "10"),
    ("10 centimeters", r"10 \text{ cm}"),
    (r"90^\circ", "90"),
    ("90°", "90"),
    (r"\text{even}", "even"),
    ("42.", "42"),
    # percent
    (r"5\%", "5"),
    (r"5\%", "0.05"),
    # fractions and mixed numbers
    (r"\frac12", r"\dfrac{1}{2}"),
    ("2 1/2", "5/2"),
    (r"2\frac{1}{2}", "2.5"),
    ("0.333333", "1/3"),
    ("-1/2", r"-\frac{1}{2}"),
    # powers, roots, scientific notation, constants
    (r"2^{10}", "1024"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    ("10^-3", "0.001"),
    (r"1.6 \times 10^-19", "1.6e-19"),
    ("√2", r"\sqrt{2}"),
    ("1e3", "1000"),
    (r"6.0\times10^3", "6000"),
    ("6 × 10^3", "6000"),
    ("5!", "120"),
    ("∞", r"\infty"),
    ("infinity", r"\infty"),
    ("2π", r"2\pi"),
    # numbers of any size, repeating decimals
    (r"6.0\times10^{-7}", "0.0000006"),
    (r"3\cdot 10^8", "300000000"),
    ("1.5e-9", r"1.5 \times 10^{-9}"),
    (r"0.\overline{3}", r"\frac{1}{3}"),
    (r"0.1\overline{6}", "1/6"),
    (r"1.\overline{09}", r"\frac{12}{11}"),
    (r"0.\dot{1}4\dot{2}", "142/999"),
    ("0.0333333", r"\frac{1}{30}"),
    # units, however they are written
    (r"30\text{ km/h}", r"30 \frac{\text{km}}{\text{h}}"),
    (r"30\text{ mph}", "30 miles per hour"),
    (r"5\text{ cm}^2", r"5 \mathrm{cm^{2}}"),
    (r"6\text{ cm}^2", "6 square centimeters"),
    (r"5\text{ m/s}^2", "5 meters per second squared"),
    (r"45^\circ", r"45 \text{ degrees}"),
    (r"\$5", "5 dollars"),
    (r"5\text{ m}^2", r"5\text{ sq. m}"),
    (r"\text{4:30 p.m.}", "4:30 PM"),
    ("5¢", "5 cents"),
    ("5 oz", "5 ounces"),
    ("6 people", "6 persons"),
    ("45 secs", "45 seconds"),
    ("30 sec", "30 s"),
    (r"15 \text{ red marbles}", "15 marbles"),
    # units that each member of a list has
    ("5 cm, 7 centimeters", "7, 5"),
    (r"30^\circ \text{ and } 150^\circ", r"\{30,150\}"),
    (r"5\%, 7\%", r"5,7\%"),
    (r"5\%, 7\%", "0.05, 0.07"),
    # words that multiply
    ("7.5 million", "7,500,000"),
    (r"\$2.5\text{ million}", "2500000 dollars"),
    ("2 dozen eggs", "24"),
    (r"2\pi\text{ million}", r"2000000\pi"),
    (r"12.5\%", "12.5 percent"),
    (r"1\frac12\%", r"1.5\%"),
    (r"3.0 \times 10^{8} \text{ m/s}", r"3\times10^8"),
    ("€5", "5"),
    ("£5", "5"),
    ("52_8", "52_{8}"),
    ("52_8", "52"),
    ("52_8", "(52)_8"),
    ("52_8", r"52_{\text{eight}}"),
    ("52_8", r"52\text{ (base 8)}"),
    ("52_8", r"52 \text{ in base } 8"),
    ("52_8", r"52_{\text{base }8}"),
    ("-52_8", "-52"),
    ("2^{-98}", r"\frac{1}{2^{98}}"),
    ("4th", "4"),
    (r"4^{\text{th}}", r"4\text{th}"),
    (r"\text{Area}=12", "12"),
    # words
    ("Even", r"\text{even}"),
    (r"\text{June 20}", "June 20"),
    ("10 red and 5 blue", r"10 \text{ red and } 5 \text{ blue}"),
    (r"3\text{ ft }4\text{ in}", "3 ft 4 in"),
    ("No solution.", r"\emptyset"),
    (r"\text{There is no solution.}", "no solution"),
    (r"\text{no solutions}", r"\varnothing"),
    (r"\text{the empty set}", r"\{\}"),
    # other ways to write
    ("**42.**", "42"),
    ("½", "1/2"),
    ("2½", "5/2"),
    ("10 080", "10080"),
    (r"\text{The answer is } 5", "5"),
]

DIFFERENT = [
    ("42", "43"),
    ("42", "-42"),
    ("4 2", "43"),
    ("4 2", "42"),
    ("2 1/2", "21/2"),
    ("A", "B"),
    ("1/2", "1/3"),
    ("1/3", "0.333"),
    ("1,000", "1.000"),
    ("12, 144", "12144"),
    ("(1,100)", "1100"),
    (r"\{81,256\}", "81256"),
    ("5 km", "5 m"),
    ("3 hours", "3 minutes"),
    ("3.14", r"\pi"),
    (r"\text{even}", r"\text{odd}"),
    ("1/0", "2"),
    ("10^{100}", "1"),
    ("0", "0.0000001"),
    (r"\sqrt{2}", "1.41"),
    ("", "0"),
    ("7" * 5000, "7" * 4999),
    # small numbers, decimals that repeat
    (r"6.626\times10^{-34}", r"1.6\times10^{-19}"),
    (r"1.6\times10^{-19}", r"3.2\times10^{-19}"),
    ("0.0000011", "0.0000014"),
    (r"5\times10^{-7}", "0.0000001"),
    (r"5\times10^{-8}", "0"),
    ("10^{-20}", "10^{-21}"),
    (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"),
    (r"\frac{1}{2^{98}}", r"\frac{3}{2^{98}}"),
    (r"\frac{1}{2^{2024}}", r"\frac{1}{2^{2023}}"),
    (r"1-\frac{1}{2^{100}}", r"1-\frac{1}{2^{101}}"),
    ("(2^{-98},1)", "(2^{-99},1)"),
    (r"\{2^{-98},1\}", r"\{2^{-99},1\}"),
    ("1.00000001", "1.0"),
    ("10^-3", "10^{-2}"),
    ("2**3**", "23"),
    (r"(1.1\times10^{-9},2)", r"(1.4\times10^{-9},2)"),
    (r"0.\overline{3}", "0"),
    (r"0.\overline{3}", r"0.\overline{7}"),
    (r"0.1\overline{6}", r"0.1\overline{3}"),
    (r"0.\dot{3}", r"0.\dot{6}"),
    # units that both name
    (r"5\text{ m/s}", r"5\text{ km/h}"),
    (r"30 \frac{km}{h}", r"30 \frac{m}{s}"),
    (r"5\text{ cm}^2", r"5\text{ cm}^3"),
    (r"5\text{ cm}^2", r"5\text{ m}^2"),
    (r"5\text{ cm}^2", r"5\text{ cm}"),
    ("5 eV", "5 keV"),
    ("5 kHz", "5 MHz"),
    (r"5\,\mathrm{J}", r"5\,\mathrm{N}"),
    (r"450\text{ nm}", r"450\text{ m}"),
    (r"2\pi\text{ cm}", r"2\pi\text{ m}"),
    (r"\frac12\text{ hour}", r"\frac12\text{ minute}"),
    (r"\$5", "5 cents"),
    (r"\$5", r"5\%"),
    (r"90^\circ", r"90\%"),
    (r"45^\circ", "45 rad"),
    (r"5 \text{ K}", r"5^\circ\text{C}"),
    ("7 am", "7 pm"),
    (r"\text{Area}=12", r"\text{Perimeter}=12"),
    (r"5\%\text{ increase}", r"5\%\text{ decrease}"),
    ("1 January", "1 June"),
    ("15 red marbles", "15 blue marbles"),
    ("15 boys and girls", "15 girls"),
    ("5 cm, 7 cm", "5 m, 7 m"),
    ("2 hours, 30 minutes", "2, 30"),
    # words that make another number
    ("25", "25 million"),
    ("25", r"25\text{ dozen}"),
    (r"2\pi\text{ million}", r"2\pi"),
    ("12", r"12\text{ or more}"),
    ("12", "12 or less"),
    (r"12\text{ or more}", r"12\text{ or fewer}"),
    ("12", r"12\text{ and a half}"),
    ("12", r"12\text{ squared}"),
    ("2516_8", "2516_7"),
    ("52_8", "52_9"),
    ("52_8,53_8", "52_8,53_9"),
    (r"\{52_8,53_8\}", r"\{52_8,53_9\}"),
    ("-221_3", "-221_4"),
    ("0.0011_{2}", "0.0011_{3}"),
    (r"101_{\text{two}}", r"101_{\text{three}}"),
    # words
    ("ABCD", "DCBA"),
    ("stop", "pots"),
    ("no", "on"),
    ("no solution", "0"),
    ("no solution", "no"),
    ("one solution", r"\emptyset"),
    ("no solution", r"\{0\}"),
    ("no solution", r"\infty"),
    # words and numbers behind the first one
    (r"3\text{ ft }4\text{ in}", r"3\text{ ft }9\text{ in}"),
    (r"2\text{ h }15\text{ min}", r"2\text{ h}"),
    (r"10\text{ red and }5\text{ blue}", r"10\text{ red and }6\text{ blue}"),
    (r"10\text{ cm by }5\text{ cm}", r"10\text{ cm by }7\text{ cm}"),
    ("3 to 2", "3 to 5"),
    (r"1,2,\ldots,10", "1,2,10"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_answers(a, b):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(a, b):
    assert not same_answer(a, b)
    assert not same_answer(b, a)


@given(st.integers(), st.integers())
def test_integers_are_compared_as_numbers(a, b):
    assert plainly_same(str(a), str(b)) == (a == b)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1e6, max_value=1e6))
def test_decimals_equal_their_fractions_without_a_parser(value):
    assert plainly_same(str(value), f"{int(value * 1000)}/1000")
