from imtok.data.sample import Face, TextRegion
from imtok.evaluation import faces, text
from imtok.evaluation.buckets import face_buckets, text_buckets


def test_text_size_ratio_and_buckets_match_tokbench() -> None:
    word = TextRegion(box=(10.0, 10.0, 74.0, 30.0), text="WORD")  # 64 / 4 = 16 pixels a character
    assert text.size_ratio(word, 256, 200) == 16 / 256
    assert text_buckets(256).index(16 / 256) == 2
    assert text_buckets(256).index(0.025) == 0
    assert text_buckets(256).index(0.03) == 1
    assert text_buckets(256).index(0.019) is None
    assert text_buckets(512).limits == (0.01, 0.02, 0.03)
    assert text_buckets(1024).limits == (0.005, 0.01, 0.02)


def test_size_ratio_of_a_tall_word_uses_its_height() -> None:
    assert text.size_ratio(TextRegion(box=(0.0, 0.0, 10.0, 50.0), text="up"), 100, 100) == 25 / 100


def test_size_ratio_of_a_face_uses_its_longer_side() -> None:
    assert faces.size_ratio(Face(box=(0.0, 0.0, 30.0, 40.0)), 128, 200) == 40 / 200


def test_other_picture_sizes_use_the_nearest_limits() -> None:
    assert text_buckets(96) == text_buckets(128)
    assert text_buckets(384) == text_buckets(512)  # 384 is nearer to 512 than to 256 as a ratio
    assert text_buckets(4000) == text_buckets(1024)
    assert face_buckets(300) == face_buckets(256)


def test_face_bucket_versions_have_different_limits() -> None:
    assert face_buckets(256) == face_buckets(256, "second")
    assert (face_buckets(256, "second").limits, face_buckets(256, "first").limits) == ((0.1, 0.2, 0.3), (0.0, 0.1, 0.2))
    assert face_buckets(512, "first").index(0.01) == 0  # in the first version, no face is too small
    assert face_buckets(512, "second").index(0.01) is None
    assert "first version" in str(face_buckets(1024, "first"))
