import torch


def test_maps_match_easyocrs_definition(needs, pattern, reference) -> None:
    """`references/make.py craft` made the reference: means of every 16th channel."""
    maps = needs("text_features/craft")(pattern(64, 96, 1))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (128, 32, 48),
        (256, 16, 24),
        (512, 8, 12),
        (512, 4, 6),
        (1024, 4, 6),
    ]
    for index, ours in enumerate(maps):
        expected = reference("craft", f"map{index}")
        torch.testing.assert_close(ours[0, ::16].mean((1, 2)), expected, atol=1e-3, rtol=0)


def test_gradients_of_every_map_match_finite_differences(needs, pattern, check_gradient) -> None:
    check_gradient(needs("text_features/craft"), lambda network, images: network(images), pattern(32, 32, 1))
