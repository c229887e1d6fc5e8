from streetvision.eval.report.learning_curve import learning_curve

ROWS = [
    {"epoch": n, "train_loss": 1.0 / n, "val_select_mcc": 0.2 * n, "val_select_nll": 0.9 / n, "ema_val_select_mcc": 0.1}
    for n in (1, 2, 3)
]


def test_the_picture_is_the_same_bytes_twice_and_moves_with_the_rows():
    plain = [{k: v for k, v in row.items() if not k.startswith("ema")} for row in ROWS]
    pictures = [learning_curve(ROWS, chosen=3), learning_curve(plain, chosen=3), learning_curve(plain, chosen=2)]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3
    assert learning_curve(ROWS, chosen=3) == pictures[0]
