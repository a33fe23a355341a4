"""Choices: which letter a text settles on; and where answers stand in texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salt_jax.graders import GraderError, Verdict
from salt_jax.graders.choice import exact_answer, find_choice, multiple_choice
from salt_jax.graders.extract import EXTRACT, last_boxed, last_line, last_tag


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (r"\boxed{B}", "B"),
        (r"Answer: A, that is $\boxed{\text{B}}$.", "B"),  # a box decides alone
        (r"\boxed{(B)}", "B"),
        (r"\boxed{(B) 12}", "B"),
        (r"\boxed{B. 12}", "B"),
        (r"Answer: A, so \boxed{42}", None),
        (r"\boxed{A dog}", None),
        ("Answer: B", "B"),
        ("answer: B.", "B"),
        ("Answer: **B**", "B"),
        ("**Answer:** B", "B"),
        ("**Answer: B**", "B"),
        ("Answer: (B) because of C", "B"),
        ("the answer is B", "B"),
        ("the answer is (B).", "B"),
        ("The correct answer is: B", "B"),
        ("the answer is\nB", "B"),
        ("So it is **B**.", "B"),
        ("So it is **(B)**", "B"),
        ("B", "B"),
        ("(B).", "B"),
        ("Long thoughts on A and C.\n\nB\n", "B"),
        ("The correct option is B", "B"),
        ("Option A is wrong. The answer is B.", "B"),
        ("Answer: A\nNo, I mean\nAnswer: B", "B"),
        ("**A** is wrong. Answer: B", "B"),
        ("Answer: B. **C** would be wrong", "B"),  # what is only in bold comes last
        ("The answer is A", "A"),
        ("The answer is A because it is", "A"),
        ("The answer is A dog.", None),
        ("The answer is a dog.", None),
        ("A dog is here", None),
        ("The option A child would take", None),
        ("answer: b", "B"),
        ("The answer is Bob", None),
        ("The answer is B's", None),
        ("The answer is B-flat", None),
        ("The answer is E", None),
        ("A is wrong, B is right", "B"),
        ("A and B", None),
        ("", None),
        ("B\nis what I first thought", None),
    ],
)
def test_the_choice_of_a_text(text, choice):
    assert find_choice(text) == choice


# Texts of every form, by where the answer stands, and the choice that an examiner would take; some alphabets' В, С, Α
# and А are no Latin letters.
TEXTS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("box", "B"): (
        r"\boxed{B}. My answer is in \boxed{}.", r"\boxed{B} is the answer. Actually, A is close.",
        "So, the final answer is:\n\n$$\\boxed{B}$$", r"Answer: $\boxed{\textbf{B}}$",
        r"\boxed{\text{B) Paris}}", r"\boxed{\text{(B)}\;\frac{1}{2}}", r"\boxed{B)\ 12}",
        r"\boxed{\left(B\right)}", r"\boxed{\large B}", r"\boxed{\huge B}", r"\boxed{ \textbf {B} }",
        r"\boxed{\mathcal{B}}", r"\boxed{\rm B}", r"\boxed{B\text{. Paris}}", r"\boxed{\text{B. }12}",
        r"\boxed{\textbf{(B) }12}", r"\boxed{\text{B – Paris}}", r"\boxed{\text{B, Paris}}",
        r"\boxed{B (Paris)}", r"\boxed{B \text{ (Paris)}}", r"\boxed{\text{Choice (B)}}",
        r"\boxed{\text{letter B}}", r"\boxed{\text{选项B}}", r"\boxed{\text{答案：B}}", r"\boxed{\text{Antwort B}}",
        r"\boxed{Answer B}", r"\boxed{The correct answer is B.}", r"\boxed{'B'}", "\\boxed{\"B\"}",
        r"\boxed{`B`}", r"\boxed{[B]}", r"\boxed{B!}", r"\boxed{B;}", r"\boxed{Ⓑ}", "\\boxed{ B}\\",
        r"\boxed{\;B\;}", r"\boxed{\ B\ }", r"\boxed {B}", "\\boxed\n{B}", r"\boxed{\text{B}}\boxed{}",
        r"\boxed{B} \boxed{\ }", r"\boxed{B}, \boxed{B}", r"\boxed{A} is wrong, \boxed{B} is right.",
        r"\boxed{\text{probably B}}", r"\boxed{\cancel{A} B}",
    ),
    ("box", "C"): (
        r"\boxed{\mathbf{(C)}}", r"\boxed{\text{(C) } 12}", r"\boxed{\textbf{C.}}", r"\boxed{**C**}",
        r"\boxed{C.}", r"\boxed{\text{C. Paris}}", r"\boxed{C: Paris}", r"\boxed{C) Paris}",
        r"\boxed{\text{Choice C}}", r"\boxed{\text{The answer is C}}", r"\boxed{\text{Answer: C}}",
        r"\boxed{Option\ C}", r"\boxed{\textcolor{red}{C}}", r"\boxed{\color{blue} C}", r"\boxed{\boxed{C}}",
        r"\boxed{$C$}", r"$\boxed{C}$", r"$$\boxed{\text{C}}$$", r"\fbox{C}", r"\boxed{[C]}", r"\boxed{\{C\}}",
        r"\boxed{Ｃ}", r"\boxed{c}", r"\boxed{(c)}", r"\boxed{\text{c}}", r"\boxed{C\\}",
        r"\boxed{\textbf{(C)} \; 24}", r"\boxed{\textbf{C}: 24}", r"\boxed{\mathsf{C}}",
        r"\boxed{\textbf{(C)}\quad \frac{1}{2}}", r"\boxed{\underline{C}}", r"\boxed{\bf C}",
        r"\boxed{\checkmark C}", r"Answer \boxed{C}. I repeat: \boxed{\text{}}",
        r"\boxed{B}. Wait, that is wrong. The answer is C.", r"It is not \boxed{A} but \boxed{C}.",
        r"\boxed{C}. The other options, A and B, are wrong; the answer is not D.",
        r"If we solve this we get \boxed{C}.", "## Final Answer\n\n\\boxed{C}",
        r"The final answer is $\boxed{\text{C}}$.",
    ),
    ("box", "D"): (
        r"\boxed{\textbf{D}}", r"\boxed{\textbf{(D)}\ 12}", r"\boxed{\mathbf{D}}", r"\boxed{\mathrm{(D)}}",
        r"\boxed{\text{Option D}}", r"\boxed{D - The third law}", r"\boxed{\text{D}}",
        r"\boxed{(D) The third law}", r"\boxed{24}, so the answer is (D).", r"\boxed{D}\boxed{D}",
    ),
    ("box", None): (
        r"\boxed{A, C}", r"\boxed{A \text{ and } C}", r"\boxed{AC}", r"\boxed{A/C}", r"\boxed{A or C}",
        r"\boxed{\text{Both A and C}}", r"\boxed{A\&C}", r"\boxed{A} and \boxed{C}",
        r"The answers are \boxed{A}, \boxed{C}", r"\boxed{\text{None of A--D}}", r"\boxed{\text{not C}}",
        r"\boxed{3}", r"\boxed{C = 5}", r"\boxed{5C}", r"\boxed{C_2}", r"\boxed{C^2}", r"\boxed{C+D}",
        r"\boxed{B \cup C}", r"\boxed{\frac{C}{2}}", r"\boxed{-C}", r"\boxed{\vec{C}}",
        r"\boxed{\text{A good conductor}}", r"\boxed{\text{C or D}}", r"\boxed{E}", r"\boxed{Е}", r"\boxed{С}",
        r"\boxed{\text{C?}}", r"\boxed{A - C}", r"\boxed{A: 12, C: 14}", r"\boxed{(A), (C)}",
        r"\boxed{(A)(C)}", r"\boxed{(A, C)}", r"\boxed{24}", r"The answer is not \boxed{B}.",
        r"Is it \boxed{B}?", r"\boxed{B}. Wait, that is wrong.", r"Final: \boxed{D",
        r"\boxed{B \rightarrow 12}", r"\boxed{B = 12}", "boxed{B}", r"\boxed{A} or \boxed{B}",
        "\\boxed{A}\n\nor\n\n\\boxed{B}", r"Either \boxed{A} or maybe \boxed{B}", r"\boxed{A and B}",
        r"\boxed{\text{A or B}}", r"\boxed{\text{A, B, and C}}", r"\boxed{A,B}", r"\boxed{A\ B}",
        r"\boxed{A \quad B}", r"\boxed{A;B}", r"\boxed{AB}", r"\boxed{\{A,B\}}",
        r"\boxed{\text{A and B only}}", r"\boxed{\text{all of A, B}}", r"\boxed{\text{Neither A nor B}}",
        r"\boxed{\text{B is wrong}}", r"\boxed{\text{isn't B}}", r"\boxed{\neg B}", r"\boxed{\lnot B}",
        r"\boxed{\overline{B}}", r"\boxed{\bar B}", r"\boxed{B'}", r"\boxed{B^c}", r"\boxed{2B}",
        r"\boxed{B2}", r"\boxed{B/2}", r"\boxed{B \times 2}", r"\boxed{B-1}", r"\boxed{B+1}", r"\boxed{|B|}",
        r"\boxed{\sqrt{B}}", r"\boxed{f(B)}", r"\boxed{P(B)}", r"\boxed{x = B}", r"\boxed{\angle B}",
        r"\boxed{\text{point } B}", r"\boxed{\text{Vitamin B}}", r"\boxed{\text{Hepatitis B}}",
        r"\boxed{12 \text{ B}}", r"\boxed{(12, B)}", r"\boxed{(B, 12)}", r"\boxed{B, 12}", r"\boxed{B: A}",
        r"\boxed{B\%}", r"\boxed{B?}", r"\boxed{\text{maybe B}}", r"\boxed{\text{B?}}", r"\boxed{\cancel{A}}",
        r"\boxed{A/B/C/D}", r"\boxed{A|B|C|D}", r"\boxed{letter}", r"\boxed{X}",
    ),
    ("tag", "B"): (
        "<answer>(B) Paris</answer>", "<Answer>B</Answer>", "<answer>B", "<answer>\nB\n</answer>",
        "<answer>The answer is B</answer>", "<answer>B. Paris</answer>",
        "<answer>A</answer> no: <answer>B</answer>", "<answer>B</answer><answer></answer>",
    ),
    ("tag", "C"): (
        "Use <answer></answer>. <answer>C</answer>", "<answer>**C**</answer>", "<answer>$C$</answer>",
    ),
    ("tag", "D"): (
        "<answer>D</answer>",
    ),
    ("tag", None): (
        "<answer>Paris</answer>", "<answer>A or B</answer>", "<answer>2</answer>", "<answer>A dog</answer>",
        "<answer>A/B/C/D</answer>", "<answer>letter</answer>", "<answer>X</answer>",
    ),
    ("thought", "B"): (
        r"<think>try \boxed{A}</think>The answer is B.", "<think>The answer is B.</think>",
        r"<think>So the answer is \boxed{B}.</think>",
    ),
    ("thought", "C"): (
        "<think>so B</think>C", "The answer is B.</think> C",
    ),
    ("thought", None): (
        "<think>hmm B maybe</think>", "<think>The answer is B. Hmm, wait",
        "<think>The answer is B.</think>I do not know.",
    ),
    ("stated", "A"): (
        "It can only be A", "It can only be option A.", "It is A.", "The answer is A.", "Answer: A",
        "Answer: (A) A dog", "Answer: A. A dog", "A", "a", "The answer is A, C is wrong.",
        "The answer is A and C is wrong.",
    ),
    ("stated", "B"): (
        "answer: b", "A is wrong, B is right", "A is wrong and B is right.", "b)", "(b)", "[B]", "**B**",
        "**(B)**", "B.", "$B$", "Option B", "Option B.", "B!", "> B", "- B", "✅ B", "B ✅", "**B.** Paris",
        "**B. Paris**", "**B) Paris**", "(B) Paris", "B: Paris", "B - Paris", "B) paris",
        "B\n\nBecause Paris is the capital.", "Answer: B. Wait, let me check. Yes, it is fine.",
        "Answer: B. No other option fits.", "Is it A? No. The answer is B.",
        "Answer: B. Is A possible? No, since x.", "Answer: A\n...\nAnswer: B", "Lösung: B",
        "Question: capital?\nA. Rome\nB. Paris\nC. Madrid\nD. Lisbon\nAnswer: B",
        "The answer lies between A and C, so B.",
        "The half-life is 5 days, so a quarter is left, which corresponds to B.",
        "Since the mass doubles, the answer is B) 12 N.", "Thus the correct choice would be B.",
        "Looking at the options, B is the closest, so B.", "I'm fairly confident it's B.",
        "I am sure the answer is B.", "I believe the correct answer is B.", "I think the answer is B",
        "I think it's (B).", "I'd pick B over D.", "My pick: B", "Going with B.", "Let's choose B.",
        "So, the final answer is:\n\n**B**", "Final answer: **B. Paris**", r"Final answer: (B) $12\,\text{m}$",
        "The correct option is:\n\n**B. The mass doubles.**", "The correct answer is:\n\nB. The mass doubles.",
        "The correct answer is:\n\nB) $x = 2$", "The correct answer is:\n(B)",
        "The correct answer is **B**, because A ignores friction and C is too large.",
        "Not A, not C, not D. So B.", "A, C and D can be ruled out, leaving B.",
        "It cannot be A or C, so it must be B.", "It must be B, as A and C are excluded.",
        "A is incorrect. B is correct. C is incorrect. D is incorrect.",
        "Option A: no.\nOption B: yes.\nAnswer: B", "The answer is B.\n\nI hope this helps!",
        "The answer is B. Let me know if you have questions!", "Answer: B. Do you want to know more?",
        "Answer: B\n\nIs there anything else?", "B. Let me know if you need more.",
        "The answer is B. If you have more questions, ask.",
        "B is the correct answer. Therefore, A, C, and D are incorrect.",
        "The answer is B. Therefore A is wrong.", "The answer is B. This leaves A unexplained.",
        "Correct answer: B (Paris). Wrong answers: A, C, D.", "Correct: B\nIncorrect: A, C, D",
        r"\textbf{Answer: B}", r"\text{The answer is } B", r"$\text{Answer: B}$", r"$$\text{B}$$",
        r"\[ \textbf{B} \]", "The answer is B and not C.",
    ),
    ("stated", "C"): (
        "The enzyme fits **C** best.", "B. Wait, no: C", "Answer: B. Wait, no: C",
        "The answer is B. No, the answer is C.", "Answer: B\nCorrection: C",
        "Answer: B. Hmm, that is wrong. It is C.", "Answer: B. On second thought, C.",
        "Answer: B. Sorry, I meant C.", "I said B, but the answer is C.",
        "The answer is B. Actually, it is C.", "The answer is, actually, C",
        "Answer: C. Option A would be correct if x were red.", "Answer: C. The mode, which is B, is smaller.",
        "Answer: C. D is wrong.", "not A but C", "Not A, but C.", "Eliminating A, B and D leaves C.",
        "Step 1: x=2.\nStep 2: y=3.\nTherefore the correct answer is **C) 12**.",
        "The correct answer is **C) 12**", "The correct answer is **C. 12**.", "The answer is **C**) 12",
        "**Correct answer: C. Paris**", "**Final Answer**: C", "**Final Answer**\n\nC",
        "**Final Answer**\n\nC. Paris", "The final answer is **C**: Paris",
        "Answer: C\n\nExplanation: A is the mean. B is the mode. D is the range.",
        "C. Paris\n\nExplanation: A (Rome) is in Italy, B (Madrid) in Spain.",
        "C\n\nExplanation: Paris is the capital.", "(C)\nParis is the capital.", "My guess: C", "I guess C.",
        "Probably C.", "C, probably.", "Most likely C", "Definitely C.", "Clearly C.", "C of course",
        "Answer (C)", "Answer C", "Answer C.", "The answer: C", "The answer - C", "Solution: C", "Choice: C",
        "Choice C", "choice (C)", "Letter C", "Correct: C", "The correct letter is C.", "Key: C", "Result: C",
        "Selected answer: C", "Selected option: C", "Conclusion: C", "The correct one is C.",
        "The correct statement is C.", "Statement C is correct.", "C is the correct option.",
        "C is the only correct answer.", "C is the correct choice because it is red.",
        "C is correct, since A is wrong.", "So the answer is C, as the others fail.", "C must be the answer.",
        "C must be correct.", "C should be the right answer.", "Hence the answer C.", "Hence, option (C).",
        "Thus option C is correct", "Therefore, the correct option is: C",
        "Therefore the answer is option (C) 12 m.", "The answer is not A, but C.",
        "The answer is not A, it is C.", "The answer is C instead of A.", "The only option left is C.",
        "The remaining option is C.", "We are left with option C.", "That leaves option C as the answer.",
        "By elimination, C.", "By elimination the answer is C.", "By elimination: C",
        "A, B and D are wrong, so C.", "A, B, and D are all incorrect, therefore C is the answer.",
        "Eliminate A, B and D. The answer is C.", "Which is correct, A or C? C.",
        "If I had to guess, I'd say C.", "If forced, I would choose C.",
        "According to the key, the answer is C.", "Answer: C (see A)", "Answer: C (not A)",
        "Answer: C (A is wrong)", "Answer: A\nAnswer: C", "The answer is C: it is red.", "Es la C.",
    ),
    ("stated", "D"): (
        "D) The third law", "D. The third law", r"The answer is \(D\).", "I choose D.",
        "The answer is not A. It is D.", "Option A is wrong. Option B is wrong. Option C is wrong.\nHence D.",
        "Answer: **(D)** 12 m", "**Answer:** **D**", "**Answer: D**", "Answer: `D`", "Answer: \"D\"",
        "Answer: 'D'", "Answer: [D]", "Answer: D.", "Answer: D) 24", "Answer: D. Paris", "Answer: D - Paris",
        "Answer: D – Paris", "Answer – D", "Answer - D", "Answer = D", "ANSWER: D", "Ans: D", "Ans. D",
        "Final Answer: D", "Final answer is D", "The final answer is: D", "Answer\nD", "### Answer\nD",
        "### Answer: D", "#### D", "Correct answer: D", "Correct option: D", "The correct option is (D).",
        "The right answer is therefore D.", "The answer must be D.", "The answer should be D",
        "The answer has to be D", "So the answer would be D.", "The answer is option D.",
        "The answer is choice (D).", "The answer is the letter D", "The answer to this question is D.",
        "The answer, therefore, is D.", "My answer: D", "The answer is clearly D.",
        "The answer is most likely D.", "The answer is D, since x.", "The answer is D: the third law.",
        "The answer is D (the third law).", "The answer is D because A is wrong.", "The answer is D, not A.",
        "The answer is D and not A.", "The answer is D rather than A.", "The correct answer choice is D.",
        "The answer is (D) Both A and C", "Answer: D. None of the above", "Answer: D. Both A and C",
        r"The answer is $\textbf{(D)}\ 24$.", "The answer is (d).", "The answer is d.", "Answer: d",
        "Answer is D", "I'd say D.", "I would say (D).", "I'll go with D", "I'm going with D.", "I pick D",
        "I select option D.", "My choice is D.", "Let's go with D.", "We choose (D).",
        "So I would go with option D because of x.", "D is the correct answer.", "D is right.",
        "Option D is correct.", "(D) is the right answer.", "**D** is correct.",
        "Therefore, option D is the best answer.", "Only D is correct.", "D is the answer", "Therefore D.",
        "Thus, (D).", "So D", "Hence, D is the answer", "This leaves D.", "leaving only D.",
        "That leaves us with (D).", "Only D remains.", "So it's D.", "It's (D).", "That's D.", "It must be D.",
        "This corresponds to option D.", "This matches option (D).",
        "The wavelength is 500 nm, which is option (D).", "(D) The third law", "We get 24.\n(D) 24", "Ⓓ",
        "{\"answer\": \"D\"}", "{'answer': 'D', 'why': 'A is wrong'}", "<b>D</b>", "Answer: <b>D</b>",
        "Answer: D<br>", "Answer: D\nA: no, it is red.\nB: no, it is blue.", "Answer: C? No, D.",
        "Answer: C... wait, D.", "Answer: ~~C~~ D", "I thought it was C, but the answer is D.",
        "My first answer was C. My final answer is D.", "My final answer is D, my first was C.",
        "At first I chose C. Now I choose D.", "I choose C. No, D.", "I choose C; no wait, D.",
        "I change my answer to D.", "I change my answer from C to D.",
        "Answer: C. I made a mistake, so it is D.",
    ),
    ("language", "B"): (
        "Die Antwort ist B.", "Die richtige Antwort lautet B.", "Antwort: B", "B ist richtig.",
        "B ist die richtige Antwort.", "Ich wähle B.", "Es ist B.", "La réponse est B.", "Réponse : B",
        "La bonne réponse est la B.", "La bonne réponse est B", "La réponse correcte est (B).",
        "Je choisis B.", "C'est B.", "Donc B.", "B est correcte.", "B est la bonne réponse.",
        "La respuesta es B.", "La respuesta correcta es B.", "La respuesta correcta es la B.", "Respuesta: B",
        "La opción correcta es B.", "Elijo B.", "B es correcta.", "B es la respuesta correcta.", "Ответ: B",
        "Ответ — B", "Правильный ответ: B.", "Правильный ответ — B.", "Это B.", "Правильный вариант: B",
        "答案是B。", "答案为B", "正确答案是 B。", "答案：（B）", "答案是选项B", "选B", "故选B。", "我选择B。",
        "因此选B", "B正确", "选项B正确。",
        "B选项是正确的", "B是正确答案", "所以B。", "选项A错误，选项B正确，选项C错误。", "答えはBです。",
        "答え：B", "正解はBです。", "正解：B", "Bが正しい。",
        "したがってB。", "解答：B", "정답은 B입니다.", "정답: B", "답: B", "답은 B이다.", "따라서 B입니다.",
        "الإجابة هي B.", "الجواب: B",
        "الإجابة الصحيحة هي B", "الإجابة: (B)", "La risposta è B.", "Risposta: B", "La risposta corretta è B.",
        "A resposta é B.", "Resposta: B", "A resposta correta é a B.",
    ),
    ("language", "C"): (
        "Es ist nicht A, sondern C.", "Ce n'est pas A mais C.", "No es A sino C.", "Не A, а C.", "不是A，而是C。",
        "C is the best choice.", "答案：C。不是A。", "我认为答案是C。", "我觉得选C。", "答案应该是C。",
        "答案应为C", "答案选择C", "正确选项为C",
        "正确选项是：C", "本题选C。", "综上所述，选C。", "因此，正确答案是C。", "【答案】C", "答案 C",
        "答案：C．", "A错误，B错误，D错误，C正确。", "故答案为C",
        "故答案为：C", "故选：C", "选择C。", "Réponse correcte : C", "La bonne réponse est donc C.",
        "La réponse C est correcte.", "La réponse est la lettre C.", "La réponse finale est C.",
        "La respuesta es la opción C.", "La respuesta es la letra C.", "La opción C es correcta.",
        "Por lo tanto, C.", "Por lo tanto, la respuesta es C.", "Правильный ответ - C.", "Верный ответ: C",
        "Ответ: (C)", "Ответ: C, а не A", "Следовательно, C.", "Я выбираю C.", "C — правильный ответ.",
        "Правильным ответом является C.", "Die richtige Lösung ist C.", "Die korrekte Antwort ist C.",
        "Richtig ist C.", "Richtig ist Antwort C.", "Antwort C ist richtig.", "Antwort C",
        "Daher ist die Antwort C.", "Die Antwort lautet: C", "Somit ist C richtig.", "したがって、正解はCです。",
        "正しい答えはCです。", "Cです。", "選択肢Cが正しい。", "Cを選びます。", "따라서 정답은 C입니다.",
        "정답은 C번입니다.", "C가 정답입니다.", "정답: C",
        "답: C번", "C가 맞습니다", "الإجابة الصحيحة هي: C", "الخيار الصحيح هو C", "الجواب هو C",
    ),
    ("language", "D"): (
        "答案：D", "Answer：D", "The best choice is D.", "The largest is 9.\n\n**D**", "Ｄ", "Answer: Ｄ",
        "答案是（D）",
        "𝐃",
    ),
    ("language", None): (
        "Ответ: С", "Ответ: В", "Answer: А", "Die Antwort ist nicht B.", "B ist falsch.",
        "B ist nicht richtig.", "A oder B", "Die Antwort ist A oder B.", "Die Antwort ist A und C.",
        "Ist die Antwort B?", "La réponse n'est pas B.", "La réponse est A ou B.", "La réponse est A et C.",
        "La respuesta no es B.", "La respuesta es A o B.", "La respuesta es A y C.", "Ответ: не B",
        "B неверно", "Ответ: A или B", "Ответ: A и C", "答案不是B。", "选项B错误", "B不正确", "不选B",
        "答案是A或B", "答案是A和C",
        "答案：A、C", "答案是B吗？", "答えはBではない。", "正解はAとCです。", "正解はBですか？",
        "정답은 B가 아닙니다.", "정답은 A와 C입니다.",
        "الإجابة ليست B", "الإجابة هي A أو B", "A resposta não é B.", "A is best known for its port.",
        "答案：A和C", "答案：不是C", "选C还是D？", "不应选C", "答案不选C", "排除C。", "选A、C", "选AC",
        "如果x=2，答案是C。", "答案可能是C。",
        "La réponse C.", "Ni A ni C.", "La réponse est-elle C ?", "C n'est pas correcte.",
        "La opción C es incorrecta.", "¿Es C?", "¿La respuesta es C?", "No es C.", "Ответ не C.", "Ответ: C?",
        "C неправильный ответ", "Antwort C ist falsch.", "Weder A noch C.", "Nicht C.", "Cは正しくない。",
        "Cは間違いです。",
        "AまたはC", "Cを選ばない。", "C는 정답이 아닙니다.", "정답은 C인가요?", "الجواب ليس C",
        "الإجابة هي C؟", "C ليست صحيحة",
        "A best guess is hard.",
    ),
    ("open", None): (
        "Answer: B. Wait, that is wrong.", "Answer: B. No, that is wrong.", "All but C.", "Both A and C",
        "A or B", "Either A or B.", "The answer is A or B.", "The answer is either A or B.",
        "The answer is A and C.", "The answer is A, B and C.", "The answer is A/B.", "Answer: A & C",
        "Answer: A C", "Answer: A, C", "Answer: A; C", "Answer: (A) and (C)", "Answer: both A and C",
        "Answers: A and C", "The answer is A–D.", "Answer: AB", "The answer is A. No, the answer is A and C.",
        "None of A–D", "Answer: none of A, B, C, D", "none of the above", "A and C are correct.",
        "Both A and C are correct.", "A, C", "A good answer needs care", "A good answer is hard to give.",
        "The answer is a good one.", "The answer is A good thing", "Answer: A French painter", "I think so",
        "The answer is not D", "D is incorrect", "D is not correct.", "D is wrong.", "I rule out D.",
        "We can rule out option D.", "Is it D?", "Is the answer D?", "Could the answer be D?", "D?",
        "The answer is D?", "Answer: D?", "I don't think the answer is D.",
        "It is not true that the answer is D.", "It is unclear whether the answer is D.",
        "The answer isn't D.", "The answer cannot be D.", "The answer might be D.", "It could be D.",
        "It is not D.", "Anything but D.", "The wrong answer is D.", "A tempting answer is D.",
        "Some say the answer is D.", "If x were 2, the answer would be D.", "The answer is D if x > 0.",
        "The answer would be D if x were 2.", "Saying the answer is D is wrong.", "The answer D is wrong.",
        "Answer D is wrong.", "The answer is E.", "I choose B. The answer is E.", "Answer: 2", "Answer: 4",
        "2", "The second one.", "Paris", "The answer is Paris.", "The answer is C++.", "The answer is C#.",
        "The answer is 25 °C.", "It is 25 °C.", "The answer is D-glucose.", "The answer is vitamin D.",
        "vitamin D", "The answer is Plan B.", "The answer is B12.", "The answer is C = 5.",
        "The answer is $C = 5$.", r"The answer is $A \cup B$.", "Answer: A+", "Answer: A-",
        "The answer is B's.", "A\nB\nC\nD", "A. B. C. D.", "A B C D", "A. Rome\nB. Paris", "A: no\nB: yes",
        "See Fig. A.", "The mass is M. A.", "Answer: Α", "I can't choose between B and D.",
        "The choice is between B and D.", "Choose A or B.", "The options are A, B, C and D.",
        "The first answer is B, the second is C.", "I do not know.", "The answer is AB.", "Answer: Because x.",
        "Answer: Dog", "Answer: all of the above", "This leaves A and C.", "Hence B or D.",
        "This rules out B.", "Only C and D remain.", "**A** or **C**", "**A** is wrong.",
        "I can rule out **A**.", "A fails for n = 2.", "(A) fails for n = 2.", "(A) is wrong.", "A. No.",
        "A: wrong.", "The answer is a", "Let's go through them. A) no. B) no. C) yes! D) no.",
        "The options: A. Rome B. Paris C. Madrid D. Lisbon.", "A. Rome B. Paris C. Madrid D. Lisbon",
        "Question: capital?\nA. Rome\nB. Paris\nC. Madrid\nD. Lisbon\nAnswer:",
        "A. Rome\nB. Paris\nC. Madrid\nD. Lisbon\n\nB. Paris", "Compare A with B: the answer is the former.",
        "The answer is neither A nor B.", "The answer is none of these.", "Answer: none of the above (E)",
        "C would be correct if x were 2.", "C seems correct.", "C looks right.",
        "Hence A is false, B is false and D is false.", "So A, B and D are out.", "So A or B.",
        "So A is wrong.", "So A must be wrong.", "So I give up.", "It's a trap: A is wrong.",
        "It is a B flat.", "It is C sharp.", "It is either A or C.", "It is A, B or C.", "It is not A.",
        "It is not A. It is not B.", "It isn't C.", "It is never C.", "Is it A? Is it B?",
        "Could it be A? I don't know.", "Why is the answer A?", "Is A correct?", "Isn't it C?",
        "Answer: C -> D", "I thought the answer is C.", "I chose C initially.", "Students often choose C.",
        "A common error is to choose C.", "You might choose C.", "To choose C would be wrong.",
        "Do not choose C.", "Don't pick C.", "I would not choose C.", "I wouldn't pick C.",
        "I can't choose C.", "I cannot say C.", "I would never go with C.", "I refuse to choose.",
        "I would choose C if x were 2.", "The author would choose C.", "A student answered C.",
        "Tom says the answer is C.", "The book says the answer is C.", "Answer: C (or D)",
        "Answer: C or possibly D", "Answer: C, possibly D", "Answer: C, D", "Answer: C D",
        "Answer: C, and A too", "Answer: C plus D", "Answer: C & D", "Answer: C then D", "Answer: C → D",
        "Answer: A, B, C, D", "Answer: A-D", "Answer: A to D", "Answer: A through D", "Answer: (A, C)",
        "Answer: [A, C]", "Answer: {A, C}", "Answer: A+C", "Answer: A and B only", "Answers: A, C",
        "Answer: ABC", "Answer: A|C", "Answer: A\nC", "Answer:\n- A\n- C", "Answer:\nA\nC",
        "The answers are A and C.", "The correct options are A and C.", "Options A and C are correct.",
        "The correct answers: A, C.", "A & C", "(A) and (C)", "(A), (C)", "**A, C**",
        "**A** and **C** are correct", "A and also C", "A as well as C", "Answer: A as well as C",
        "The answer is A and B are equal", "The answer is the letter that follows A.",
        "The answer begins with C.", "The answer is C-shaped.", "The answer is C/4.", "The answer is Ca.",
        "The answer is 3 C.", "The answer is 5 A.", "The current is 5 A.", "The charge is 5 C.",
        "The current is A.", "I = 5 A", "It is 5 A.", "Hence 5 A.", "So x = 3 A", "Temperature: 20 C",
        "Answer: 20 C", "Answer: 5 A", "Grade: A", "Group: B", "Hepatitis B.", "Hepatitis B is the answer.",
        "Vitamin C is the answer.", "Vitamin C is correct.", "The answer is hepatitis B.", "So vitamin C.",
        "Point C is right of B.", "C is right of D.", "C is right-handed.", "Triangle ABC.",
        "Angle A is right.", "Angle at C is right.", "A answer", "Team A is the best.", "Plan B is best.",
        "Choice of A over B is odd.", "The letter A is a vowel.", "The letter is A vowel",
        "A: False\nB: True\nC: False\nD: False", "A) Wrong. B) Correct. C) Wrong. D) Wrong.",
        "A ✗\nB ✓\nC ✗\nD ✗", "The answer is B... or is it C?", "The answer is B. Or C.", "B. Or maybe C.",
        "Answer: B. Also C.", "Answer: B, but C is also correct.", "Both B and C work.",
        "B or C, hard to say.", "It's between B and C.", "I hesitate between B and C.",
        "The answer is B or not?", "The answer is B, isn't it?", "I don't know, maybe B.", "Perhaps B.",
        "Maybe the answer is B.", "B?", "B??", "Is B the answer?", "Would B be correct?",
        "What if the answer is B?", "Suppose the answer is B.", "Assume B is correct.",
        "If B is correct, then C is too.", "Let us check whether B is correct.", "I doubt that B is correct.",
        "I'm not sure that B is correct.", "It's not clear that it is B.", "It would be B if x were 2.",
        "It would have been B.", "It was B.", "It used to be B.", "B was my first thought.",
        "B is almost correct.", "B is partly right.", "B is nearly right.", "B is not quite right.",
        "B is never correct.", "B is correct only if x > 0.", "B is correct if x > 0.", "B is correct?",
        "B isn't correct.", "B can't be correct.", "B cannot be the answer.", "B is not the answer.",
        "B is the wrong answer.", "B is the second best answer.", "B is a distractor.", "B is incorrect.",
        "B is false.", "B is ruled out.", "Rule out B.", "Exclude B.", "Eliminate B.", "Discard B.",
        "Reject B", "Cross out B.", "All except B.", "Every option except B is right.", "anything but B",
        "The answer is anything but B.", "The answer is everything except B.",
        "The answer is different from B.", "The answer is close to B.", "The answer is not among A, B, C, D.",
        "The answer is unlike B.", "The answer is larger than B.", "The answer is less than B.",
        "The answer is the opposite of B.", "The answer is next to B.", "The answer is in B.",
        "The answer is A-B.", "The answer is A minus B.", "The answer is A times B.", "The answer is A ∪ B.",
        "The answer is A x B.", "Answer: not B", "Answer: Not B.", "Answer: no B", "Answer: ¬B", "Answer: !B",
        "Answer: ≠ B", "Answer: -B", "Answer: B̶", "Answer: never B", "Answer: anything but B",
        "The task says 'Answer: B' is the format.", "Give your answer as 'Answer: X'.",
        "Format: Answer: (A|B|C|D)", "Answer with A, B, C or D.", "I will answer with one of A, B, C, D.",
        "Please answer: A, B, C or D?", "Answer: [A/B/C/D]", "Answer: A/B/C/D", "The blood group is B.",
        "His grade was a B.", "She got an A.", "The team won group D.", "Type A and type B.",
        "Let A be the event.", "Let A be the event that the answer is even.", "A is the set of primes.",
        "The set A is finite.", "A person who is right.", "A right triangle.", "A correct answer needs more.",
        "I is the current.", "D is the derivative.", "D is the diameter, so x = 2D.", "Then C.",
        "Therefore C = 2.", "Hence C is closed.", "So C is constant.", "So D divides it.", "This gives A = 5.",
        "This means C.", "which is A dog", "that is C minor", "It is C-shaped",
    ),
    ("more", "A"): (
        "The reaction is exothermic (A), which rules out B and D; since the pressure rises, C is also out. So A.",
        "The answer is A. However, some argue that the answer is C.",
        "The answer is A, although C is also plausible.", "Answer: (A) and not (C)", "Answer: A, rather than C",
        "Answer: A instead of C", "Answer: A, A", "Answer: A, or in other words (A).", "Answer: 🅐", "Answer: Ⓐ",
        "Answer: ⓐ", "Answer: ⒜", "Answer: 𝐀", "Answer: 𝔸", "Answer: Ａ", "Answer: ａ", "答案：Ａ", "Ａ。",
        "（Ａ）", "「A」", "a)", "(a)", r"\boxed{a}", "Answer: a", "The answer is A, not B.",
    ),
    ("more", "B"): (
        "B is the false one, which is what was asked, so B.", "The incorrect statement is B. Answer: B",
        "Answer: 🅱️", r"\boxed{b)}", r"\boxed{\text{(b)}}", "<answer>b</answer>", "<answer>(b)</answer>",
        "<ANSWER>B</ANSWER>", "<answer> B </answer>.", "<answer>B</answer>\n\nThe answer is C.", "<answer>B",
        r"<answer>\boxed{B}</answer>", r"<answer>$\mathrm{B}$</answer>", "<answer>B (Paris)</answer>",
        "<answer>Option B</answer>", "The answer is B. <answer></answer>",
    ),
    ("more", "C"): (
        "The statement in B is true. The statement in C is false. We are asked for the false one, so C.",
        "We want the false statement. A is true, B is true, D is true. C is false, so the answer is C.",
        "Among the four, only C satisfies both conditions.", "Only option C satisfies both.", "Only (C) works.",
        "C is the one that works. Answer: C", "Since A, B, and D are all false, C is the answer.",
        "After eliminating A and B, we have C and D left. D contradicts the text. So C.",
        "D? Too large. C? Just right. So C.", "I initially thought A, but C is correct.",
        "I first answered A, then B. My final answer is C.",
        "Answer: A\n\nUpdate: after checking, the answer is C.", "~~A~~ C", "Answer: A. No! C.",
        "Answer: A. Oops, C.", "A... no, C.", "A, I mean C.", "A. I mean C.", "A. Scratch that. C.",
        "A. On reflection, it must be C.", "A. However, C is correct.", "A. But the correct answer is C.",
        "The answer is A. The answer is C.", "answer: c", "answer is (c).", "answer is c)", "c)", "c", "c.",
        "c) Paris", "(c) Paris", "option c", "Option (c) is correct", "it is c.", "so c.",
        "The answer is option (c), a dog.", "**c**", "**(c)** Paris", "**c)** Paris", "Answer: **c**",
        "Answer: $c$", "<answer>B</answer> <answer>C</answer>",
    ),
    ("more", "D"): (
        "It's not B because x, and not C because y. A is too small. That leaves D.",
    ),
    ("more", None): (
        "C satisfies both conditions.", "All options but C fail.", "Neither A nor B nor D; C.",
        "Answer: A → corrected to C", "A. Scratch that.", "The answer is A, although C is also correct.",
        "A is correct, and C is correct.", "A is correct. C is also correct.", "A is correct; C is correct too.",
        "Option A is correct and option C is correct.", "A: correct\nB: incorrect\nC: correct\nD: incorrect",
        "(A) true (B) false (C) false (D) false", "Answer: A > C", "Answer: A vs C", "Answer: A xor C",
        "Answer: A?B", "Answer: A=B", "Answer: A≈B", "Answer: A AND C", "Answer: A OR C", "ANSWER: A AND C",
        "Answer: A and/or C", r"Answer: A\C", "Answer: A | C", "Answer: A + C", "Answer: A * C", "Answer: A… C",
        "Answer: A..C", "Answer: A...D", "Answer: A - C", "Answer: A — C", "Answer: A ~ C", "Answer: A: C",
        "Answer: A. C.", "Answer: A.C", "Answer: A C D", "Answer: A (C)", "Answer: A [C]", "Answer: A, and C",
        "Answer: A, then C", "Answer: A; or C", "Answer: A, alternatively C", "Answer: A alternatively C",
        "Answer: A otherwise C", "Answer: A else C", "Answer: A versus C", "Answers: (A) (C)",
        "Answers:\n1. A\n2. C", "1. A\n2. C", "1) A", "Question 1: A", "Q1: A\nQ2: C", "It's A and C.",
        "It's A or C.", "It's A, maybe C.", "That's A/C.", "So A/C.", "Hence A & C.", "I choose A and C.",
        "I choose A or C.", "I choose A, C.", "I choose both A and C.", "I choose neither A nor C.",
        "I pick A/C", "I'd go with A or C", "I'd go with either A or C.", "I would say A, or C.",
        "My answer is A, possibly C.", "Answer: the first option", "Answer: Option 2", "Answer: option two",
        "Answer: (2)", "Answer: ②", "Answer: II", "Answer: β", "Answer: Б", "Answer: В", "Ответ: А",
        "Απάντηση: Β", "Answer: ᴬ", "Answer: ₐ", "Answer: Å", "答案是Ａ和Ｃ", "c is the speed of light.",
        "b is correct", "the answer is c = 3e8", "Answer: a dog", "<answer>B or C</answer>",
        "<answer>not B</answer>", "<answer>B?</answer>", "<answer>B, C</answer>",
        "<answer>I don't know</answer>", "<answer>E</answer>", "<answer>12</answer> so B", "Answer: A, no, C.",
        "The answer is A; the answer is C.", "So the answer is A and the answer is C.",
    ),
}  # fmt: skip
TO_J: dict[str | None, tuple[str, ...]] = {  # the choices are A to J
    "D": (
        "Answer: D, I think.", "The answer is D, I believe.", "The answer, I think, is D.", "D, I think",
    ),
    "E": (
        "I believe the answer is E.", "Answer: (e)", "Answer: E. I and III only", "Answer: (E) I and III only",
        r"\boxed{\text{(E) I and III only}}", r"\boxed{E. \text{ I and III}}",
    ),
    "G": (
        "I is correct, II is wrong. The answer is G.",
    ),
    "I": (
        "I choose I.", "The answer is I.", "Answer: (I)", "I", r"\boxed{I}",
    ),
    "J": (
        "I think it is J.", "I think J.",
    ),
    None: (
        "I and III only", "The answer is I and III only.", "The answer is I only.", "Answer: I, II and III",
        "Answer: I think so", "I. Newton found it.", "Statement I is correct.", "I am unsure",
        r"\boxed{I \text{ and } III}", r"\boxed{\text{I only}}", "Answer: II", "E = mc^2",
        "The answer is $E = mc^2$.", "The answer is e.", "The answer is i.", "Answer: K",
    ),
}  # fmt: skip
CLAIMS = (
    "The answer is B", "Answer: B", "Answer: (B)", "Answer: **B**", "I choose B", "I would go with (B)", "Let's pick B",
    "It is B", "That must be B", "So B", "Hence (B)", "This leaves B", "I think B", "I think it's B", r"So \boxed{B}",
    r"\boxed{\text{B", r"\boxed{(B)", "<answer>B", "Die Antwort ist B", "La réponse est B", "La respuesta es B",
    "Ответ: B", "答案是B", "正解はB", "정답은 B", "الإجابة هي B", "# Answer\nB", "x = 2.\n\nB",
)  # fmt: skip
SPOILERS = (" and D", " or D", ", D", "/D", " & D", "、D", " or maybe (D)", " as well as D", " oder D", "?")
WORDS = ("'s", "-flat", "2", "x", "\u0336")


@pytest.mark.parametrize("place", sorted({place for place, _ in TEXTS}))
def test_texts_of_every_form(place):
    rows = [(text, choice) for (of, choice), texts in TEXTS.items() if of == place for text in texts]
    assert [(text, find_choice(text)) for text, _ in rows] == rows


def test_texts_with_ten_choices():
    rows = [(text, choice) for choice, texts in TO_J.items() for text in texts]
    assert [(text, find_choice(text, "ABCDEFGHIJ")) for text, _ in rows] == rows


def test_what_follows_a_letter_can_spoil_it():
    closed = [claim + ("}" * (claim.count("{") - claim.count("}"))) for claim in CLAIMS]
    assert {claim: find_choice(claim + ".") for claim in closed} == dict.fromkeys(closed, "B")
    spoilt = [
        claim + spoiler + "}" * (claim.count("{") - claim.count("}"))
        for claim in CLAIMS
        for spoiler in SPOILERS + WORDS * claim.endswith("B")
    ]
    assert {text: find_choice(text) for text in spoilt if find_choice(text)} == {}


def test_a_letter_is_what_the_choices_say():
    assert [find_choice("Ответ: В", choices) for choices in ("ABCD", "АБВГ")] == [None, "В"]  # the third, not B
    assert [find_choice("Answer: E", choices) for choices in ("ABCD", "ABCDE")] == [None, "E"]
    assert [find_choice("I choose B. The answer is E.", choices) for choices in ("ABCD", "ABCDE")] == [None, "E"]


@given(st.text("ABCD abc()*:.\n{}\\", max_size=30))
def test_any_text_settles_on_one_of_the_choices_or_none(text):
    assert find_choice(text) in (*"ABCD", None)


def test_rewards_and_other_letters():
    assert multiple_choice("Answer: B", "B") == Verdict(1.0, "B")
    assert multiple_choice("Answer: B", "C") == Verdict(0.0, "B")
    assert multiple_choice("no", "C") == Verdict(0.0, None)
    assert multiple_choice("Answer: J", "J", choices="ABCDEFGHIJ") == Verdict(1.0, "J")
    with pytest.raises(ValueError, match="the reference 'E' is none of A, B, C, D"):
        multiple_choice("Answer: B", "E")
    for choices in ("", "abc", "AA", "A,B", "A]"):
        with pytest.raises(GraderError, match="are not allowed; allowed: distinct upper-case letters"):
            multiple_choice("Answer: B", "B", choices=choices)


def test_exact_answer_votes():
    assert exact_answer(" 46\n", "46 ") == Verdict(1.0, "46")
    assert exact_answer(" ", "46") == Verdict(0.0, None)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {1}", "1"),
        (r"\fbox{ 1 }", "1"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{a \boxed{b} c}", r"a \boxed{b} c"),  # a box within is a part of it
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1\}", None),
        (r"} \boxed{1}", "1"),
        (r"{ \boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\\boxed{1}", None),  # a line break, and text
        ("boxed{1}", None),
        ("\\boxed{" * 100_000, None),  # linear time
    ],
)
def test_the_last_box(text, box):
    assert last_boxed(text) == box


def test_other_places_of_an_answer():
    assert last_tag("<answer>1</answer><answer>\n2 </answer> <answer>3") == "2"
    assert last_tag("</answer> <answer>") is None
    assert last_tag("<answer></answer>") == ""
    assert last_line("a\n b \n\n") == "b"
    assert last_line(" \n") is None
    assert set(EXTRACT) == {"tag", "boxed", "last_line", "last_number", "text"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("[[D]]", "D"), (r"so \boxed D", "D"), ("Final: D", "D"), ("Response: (D)", "D"), ("Answer: D ✗", None),
        ("Answer: D ❌", None), (r"The answer is \boxed D", "D"),  # braces may be left out
    ],
)
def test_other_dress_of_a_letter(text, letter):
    assert find_choice(text) == letter
