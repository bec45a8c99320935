"""Equations that name what they are of, and inequalities: a table of pairs that are or are not the same."""

import pytest

from specexit.data.answers import same_answer

SAME = [
    # names and equations
    ("f(x)=x^2", "x^2"),
    (r"x=\frac12=0.5", "1/2"),
    (r"x \in [1,2]", "[1,2]"),
    ("x=2, y=3", "(2,3)"),
    ("y=3, x=2", "(2,3)"),
    ("a=1, b=2", "b=2, a=1"),
    (r"x=1 \text{ or } x=2", "1, 2"),
    (r"x = \pm 2", r"\pm 2"),
    (r"\frac{-1 \pm \sqrt{5}}{2}", r"x=\dfrac{-1\pm\sqrt5}{2}"),
    (r"\frac{-1 \pm \sqrt{5}}{2}", r"\frac{-1+\sqrt{5}}{2}, \frac{-1-\sqrt{5}}{2}"),
    (r"\frac{-1 \pm \sqrt{5}}{2}", r"-\frac12 \pm \frac{\sqrt5}{2}"),
    (r"(\pm 1,2)", "(1,2),(-1,2)"),
    (r"\{\pm 2,0\}", "-2,0,2"),
    (r"\{1\pm\sqrt{5},-2\}", r"1+\sqrt5, -2, 1-\sqrt5"),
    ("2x+y=3", "y=3-2x"),
    ("x^2+1=0", "1+x^2=0"),
    ("(x,y)=(1,2)", "(1,2)"),
    (r"(r,\theta)=\left(3,\frac{\pi}{2}\right)", r"\left( 3, \frac{\pi}{2} \right)"),
    ("(A,B,C) = (6,31,-1)", "(6,31,-1)"),
    ("(a_1,a_2)=(1,2)", "(1,2)"),
    ("(x,y)=(1,2),(3,4)", "(3,4),(1,2)"),
    ("P(8,14)", "(8,14)"),
    ("m+n=204", "204"),
    ("p+q+r = 100+104 = 204", "204"),
    ("ab=12", "12"),
    ("(a+b)(a-b)=15", "15"),
    (r"\frac{m}{n}=\frac34", "3/4"),
    ("z+w=3+4i", "3+4i"),
    (r"f(-2)+f(-1)+f(0)=\frac{14}{3}", r"\frac{14}{3}"),
    ("f(f(2))=10", "10"),
    (r"P(X = 3) = \frac16", "1/6"),
    ("E[X] = 3.5", "3.5"),
    (r"\cos \theta = \frac12", "1/2"),
    (r"\cos 60^\circ = \frac12", "1/2"),
    ("|AB|=5", "5"),
    ("AB^2=25", "25"),
    (r"\overrightarrow{AB}=(1,2)", "(1,2)"),
    (r"\mathbf{M}^2=\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"f^{\prime}(x)=2x", "f'(x) = 2x"),
    ("f''(x)=2", "2"),
    # a number in several forms
    (r"\frac{9}{4} = 2.25", r"\frac{9}{4}"),
    (r"\frac{9}{4} = 2.25\text{ cm}", "2.25"),
    (r"\binom{5}{2} = \frac{5!}{2!3!} = 10", "10"),
    (r"3 \times 4 = 12", "12"),
    (r"\frac{1}{3} = 0.\overline{3}", "1/3"),
    (r"\frac{22}{7} \approx 3.14", "3.14"),
    (r"\frac{22}{7} \approx 3.14", "22/7"),
    (r"6\sqrt{2} \approx 8.49 \text{ cm}", r"6\sqrt{2}"),
    (r"x = 2\pi \approx 6.28", "6.28"),
    (r"x = 2.5 \approx 3", "2.5"),
    (r"2.5 \approx 3", "3"),
    (r"\sqrt{-4} = 2i", "2i"),
    # names with an index
    ("x_1 = 1, x_2 = 2", "1, 2"),
    (r"x_{2} = 0.5, x_{1} = \frac13", "0.333333, 1/2"),
    (r"x_1 = 1 \text{ and } x_2 = 2", r"x=2 \text{ or } x=1"),
    ("P_1=(1,2), P_2=(3,4)", "(1,2), (3,4)"),
    # inequalities
    (r"-2 \le x \le 7", "[-2,7]"),
    ("1<x<2", "2>x>1"),
    (r"x < 2 \text{ or } x > 3", r"(-\infty, 2) \cup (3, \infty)"),
    ("x > 3 or x < 2", r"x < 2 \text{ or } x > 3"),
    (r"-3 \le x \le -2 \text{ or } 0 \le x \le 1", r"[-3,-2] \cup [0,1]"),
    (r"x>0 \text{ and } x<5", "(0,5)"),
    (r"1<q<2 or 5\geqslant q\geq 4", r"(1,2)\cup[4,5]"),
    (r"\{x \mid x \ge 3\}", r"[3,\infty)"),
    # in plain letters
    ("x<=3 or x>=5", r"x \le 3 \text{ or } x \ge 5"),
    ("x<=3 or x>=5", r"(-\infty,3]\cup[5,\infty)"),
    ("x>=1 and x<=2", "[1,2]"),
    ("x != 2", r"x \ne 2"),
    ("x ≠ 2", r"x \ne 2"),
    ("3! = 6", "6"),
    ("3! = 6", "3!"),
]

DIFFERENT = [
    # names and equations
    ("(2,3)", "x=3,y=2"),
    ("(x,y)=(1,2)", "(x,y)=(2,1)"),
    ("x^2=4", "4"),
    ("x+2y+z=6", "6"),
    ("x^2+y^2=25", "25"),
    (r"\sqrt{x}=4", "4"),
    ("|x-2|=5", "5"),
    ("x(x+1)(x+2)=6", "6"),
    ("x+y=z", "z"),
    ("x+y=1,2", "1,2"),
    ("m+n=204", "p+q=204"),
    ("m+n=204", "m+n"),
    ("(a,b)=(1,2)", "(2,1)"),
    ("(a,b)=(1,2)", "1,2"),
    ("(a,b)=(1,2)", "(a,c)=(1,2)"),
    ("P(8,14)", "Q(8,14)"),
    ("y^2=4x", "4x"),
    (r"\frac{x^2}{4}+\frac{y^2}{9}=1", "1"),
    ("x^2-3x+2=0", "0"),
    ("x^2+1=0", "x^2+2=0"),
    ("x=5", "y=5"),
    ("f(2)=5", "f(3)=5"),
    (r"P(X = 3) = \frac16", r"P(X = 2) = \frac16"),
    ("E[X] = 3.5", "E[Y] = 3.5"),
    ("f(x)=x", "f(x)=x^2"),
    (r"\frac{dy}{dx}=3", r"\frac{dy}{dx}=4"),
    (r"x=3k,k\in\mathbb{Z}", r"x=3k+1,k\in\mathbb{Z}"),
    ("f'(x)=2x", "f(x)=2x"),
    ("f''(x)=2", "f'(x)=2"),
    ("f'(3)=5", "f'(5)=3"),
    ("y''+y=0", "y'+y=0"),
    ("y_1'", "y_1"),
    ("A'=(1,2)", "A=(1,2)"),
    ("P'(1,2)", "P(1,2)"),
    (r"\sin\theta=\cos\theta", r"\cos\theta"),
    (r"\alpha+\beta=\gamma", r"\gamma"),
    # a number in several forms
    (r"\frac{9}{4} = 2.25", "2.26"),
    (r"2\pi \approx 6.28", "6.283"),
    (r"2x \approx 6.28", "6.28"),
    (r"2\theta = \pi", r"\pi"),
    (r"\frac{x}{2} = 3", "3"),
    ("0 = x^2-4", "x^2-4"),
    (r"5 \in A", "A"),
    ("1, 2 = 2", "2"),
    (r"\frac12, 3 = 3", "3"),
    # names with an index
    ("a_1 = 2, a_2 = 1", "1, 2"),
    ("x_1 = 1, x_2 = 2", "x_1 = 2, x_2 = 1"),
    ("x_1 = 1, x_2 = 2", "y_1 = 1, y_2 = 2"),
    ("x_1 = 1, x_2 = 2", "y = 1, y = 2"),
    ("x_1 = 1, x_2 = 2", "x = 1 or x = 3"),
    ("x_1 = 1, y_2 = 2", "1, 2"),
    ("x_1 = 1, x_2 = 1", "x = 1"),
    # inequalities
    ("1<x<2", r"\{1,2\}"),
    ("1<x<2", "1,2"),
    (r"x<2 \text{ or } x>3", r"x<2 \text{ and } x>3"),
    ("x<2 or x>3", r"x\le 2 or x>3"),
    ("x<2 or y>3", "x<2 or z>3"),
    ("1<x<2", "2>x>0"),
    ("x<=3 or x>=5", "x<3 or x>5"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same_answers(a, b):
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(a, b):
    assert not same_answer(a, b)
    assert not same_answer(b, a)
