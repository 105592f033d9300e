"""Two results side by side: what is alike, and what is not."""

from benchmarks.served_score import compared


def result(*texts, score=0.5):
    rows = [{"id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    task = {"predictions": rows, "score": score, "items": len(rows), "fingerprint": "f"}
    return {"tasks": {"t@1": task}, "settings": {"model": "m", "decoding": "greedy"}}


def test_each_question_with_another_answer_is_named_with_both():
    found = compared(result("red", "blue", "red"), result("red", "green", "red", score=0.25))
    assert (found["questions"], found["alike"], found["different_texts"]) == (3, 2, 2)
    assert found["differences"] == [{"task": "t@1", "id": "q1", "here": "blue", "there": "green"}]
    assert found["tasks"]["t@1"] == {"fingerprint": "f", "items": 3, "here": 0.5, "there": 0.25}


def test_a_question_that_failed_there_is_a_difference():
    assert compared(result("red"), result(None))["alike"] == 0
