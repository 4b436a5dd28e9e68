"""Faults planted by hand, one at a time: each must be caught by the tests named beside it.

`python -m tests.mutants` runs them all, `python -m tests.mutants canvas search` those of some modules. A fault whose
text is no longer in its file exactly once, or whose tests do not pass without it, is an error of this list.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.warm import FAILED, PASSED, ROOT, TIMED_OUT, Job, run_jobs, warm_up


@dataclass(frozen=True)
class Mutant:
    """A text of a file and the wrong one in its place."""

    path: str
    breaks: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: {self.breaks}"


def _of(path: str, *faults: tuple[str, str, str, str]) -> list[Mutant]:
    """Faults of one file: what breaks, old text, new text, tests as `file::name` with spaces between."""
    return [
        Mutant(f"vitviz_hf/{path}.py", breaks, old, new, tuple(map(_test, tests.split())))
        for breaks, old, new, tests in faults
    ]


def _test(name: str) -> str:
    file, _, test = name.partition("::")
    folder, _, stem = file.rpartition("/")
    return str(Path("tests", folder, f"test_{stem}.py")) + f"::test_{test}"


MUTANTS = [
    *_of(
        "images",
        (
            "broken EXIF makes a picture a broken one",
            "    except _DAMAGED:\n        return image",
            "    except KeyError:\n        return image",
            "images::a_picture_with_broken_exif_is_a_picture",
        ),
        (
            "large pictures are decoded at once",
            "with _ONE_LARGE if",
            "with nullcontext() if",
            "images::large_pictures_are_decoded_one_at_a_time",
        ),
        (
            "a fork waits for a thread that is not in it",
            'if hasattr(os, "register_at_fork"):',
            "if False:",
            "images::a_fork_reads_large_pictures_though_another_thread_was_at_one",
        ),
        (
            "what decoding takes is kept",
            "Image.core.set_block_size(64 * 2**20)",
            "",
            "images::what_decoding_takes_is_given_back",
        ),
        (
            "the transparent value of 16 bits is forgotten",
            "levels if clear is None else",
            "levels if True else",
            "images::a_transparent_value_of_16_bits_is_put_on_white",
        ),
    ),
    *_of(
        "manifest",
        (
            "a full disk ends in a traceback",
            "except (OSError, sqlite3.Error, SafetensorError) as error:",
            "except ZeroDivisionError as error:",
            "manifest::a_full_disk_is_told_and_leaves_what_was_there",
        ),
        (
            "what a living writer has is deleted",
            "            if is_ours:",
            "            if True:",
            "manifest::what_another_is_writing_stays",
        ),
        (
            "what a killed writer left stays",
            "            if is_ours:",
            "            if False:",
            "manifest::what_a_killed_writer_left_is_deleted_by_the_next",
        ),
    ),
    *_of(
        "cli/atlas",
        (
            "what a writer left that was killed at its end stays",
            '    clear_left(atlas.folder / "visualizations", suffix=".png")\n',
            "",
            "atlas/search::what_a_build_left_that_was_killed_at_its_end_is_deleted",
        ),
    ),
    *_of(
        "models/loading",
        (
            "timm may open other files",
            "set(arguments) & _FETCHING",
            "set(arguments) & set()",
            "hub::timm_opens_no_other_file_for_a_stranger",
        ),
        (
            "an input may be of any size",
            "not 0 <= side <= LONGEST_SIDE",
            "not 0 <= side",
            "hub::an_input_that_nobody_has_the_memory_for_is_refused",
        ),
    ),
    *_of(
        "optimize/transforms",
        (
            "colors are multiplied where they are divided",
            "(images - mean) / log_std.exp()",
            "(images - mean) * log_std.exp()",
            "optimize/transforms::colors_are_shifted_and_scaled_for_each_copy_and_color",
        ),
        (
            "noise is subtracted by a hundredth of its size",
            "images + std * to_device",
            "images + 0.01 * std * to_device",
            "optimize/transforms::noise_is_added_with_its_standard_deviation",
        ),
        (
            "jitter moves rows only",
            "cols = (torch.arange(width) - shifts[:, 1]) % width",
            "cols = (torch.arange(width) - 0 * shifts[:, 1]) % width",
            "optimize/transforms::jitter_rolls_each_picture_by_its_own_shift_of_both_axes",
        ),
        (
            "the last window is never drawn",
            "torch.randint, 0, s + 1,",
            "torch.randint, 0, s,",
            "optimize/transforms::every_copy_is_a_window_of_its_own_and_all_windows_occur",
        ),
        (
            "a turn shears pictures that are not square",
            "-sin * height / width",
            "-sin",
            "optimize/transforms::a_turned_and_zoomed_plane_is_that_plane_in_turned_coordinates",
        ),
        (
            "draws are never negative",
            ") * 2 - 1",
            ")",
            "optimize/transforms::colors_are_shifted_and_scaled_for_each_copy_and_color",
        ),
    ),
    *_of(
        "optimize/penalties",
        (
            "one of the four directions of total variation is left out",
            "    ((_LATER, _EARLIER), (_EARLIER, _LATER)),\n",
            "",
            "optimize/loop::total_variation_equals_the_formula_written_out",
        ),
        (
            "the gradient of total variation pulls both pixels the same way",
            "whole[..., *b] -= part",
            "whole[..., *b] += part",
            "optimize/loop::the_gradient_of_total_variation_is_that_of_small_differences",
        ),
        (
            "automatic smoothness does not know how many features there are",
            "signal.norm() / math.sqrt(values.shape[1])",
            "signal.norm()",
            "optimize/recipe::automatic_smoothness_is_its_rule_written_out",
        ),
    ),
    *_of(
        "optimize/collages",
        (
            "a collage is of the first images",
            "ranked = values.argsort(descending=True, stable=True).tolist()",
            "ranked = list(range(len(images)))",
            "optimize/guides::the_collage_is_the_regions_that_excite_most_of_four_images",
        ),
        (
            "the collage of the next seed is nearly that of the first",
            "(_REGIONS * i + shift) % n",
            "(i + shift) % n",
            "optimize/guides::the_next_seed_starts_from_the_next_four_images_and_is_pulled_to_the_same_statistics",
        ),
        (
            "later seeds start from the collages of earlier ones",
            "for shift in range(shared) for i",
            "for _ in range(shared) for shift in [0] for i",
            "optimize/guides::collages_are_all_different_and_of_images_that_excite",
        ),
        (
            "seeds start from images that do not excite the feature",
            "n = min(int((values > 0).sum()), MOST)",
            "n = min(len(values), MOST)",
            "optimize/guides::collages_are_all_different_and_of_images_that_excite",
        ),
    ),
    *_of(
        "optimize/guides",
        (
            "all patches count alike",
            "_UNIFORM = 0.3",
            "_UNIFORM = 1.0",
            "optimize/guides::moments_count_patches_by_how_much_they_excite_the_feature",
        ),
        (
            "patches that excite the opposite count",
            "    return weight * activations(",
            "    return activations(",
            "optimize/guides::moments_count_patches_by_how_much_they_excite_the_feature",
        ),
        (
            "what lies below 0 counts too",
            "_maps(view, objective, images).clamp_min(0)",
            "_maps(view, objective, images).abs()",
            "optimize/guides::without_a_map_images_count_by_their_scores",
        ),
        (
            "the deviation is a variance",
            "values - mean).square()).sqrt()])",
            "values - mean).square())])",
            "optimize/guides::moments_count_patches_by_how_much_they_excite_the_feature",
        ),
        (
            "the block two before the last is not matched",
            "(0, 1, 3, last - 2, last)",
            "(0, 1, 3, last)",
            "optimize/guides::the_blocks_that_are_matched_are_the_first_ones_and_the_last_before_the_objective",
        ),
        (
            "a class matches the first blocks alone",
            "last = len(view.layers) - 1 if objective.needs_logits else last",
            "last = 0 if objective.needs_logits else last",
            "optimize/guides::without_a_map_images_count_by_their_scores",
        ),
        (
            "deviations are those of a sample",
            "flat.std(1, correction=0)",
            "flat.std(1)",
            "optimize/guides::the_misfit_is_0_for_the_statistics_of_the_images_themselves_and_relative_to_them_otherwise",
        ),
        (
            "the misfit is not relative",
            "/ wanted.norm(dim=1).clamp_min(1e-6)",
            "",
            "optimize/guides::the_misfit_is_0_for_the_statistics_of_the_images_themselves_and_relative_to_them_otherwise",
        ),
        (
            "all pictures of a batch have the first one's images",
            "torch.stack([g.moments[site] for g in guides])",
            "torch.stack([guides[0].moments[site] for g in guides])",
            "optimize/guides::guided_pictures_of_a_batch_come_out_as_each_alone",
        ),
        (
            "a photograph is held where its feature fires",
            "self.held, self.unit = 1 - torch.stack(free)",
            "self.held, self.unit = torch.stack(free)",
            "optimize/guides::a_photograph_is_held_where_its_feature_does_not_fire",
        ),
        (
            "a photograph is not held for classes",
            "if values.numel() > 1 else torch.zeros_like(values)",
            "if values.numel() > 1 else torch.ones_like(values)",
            "optimize/guides::a_photograph_is_held_where_its_feature_does_not_fire",
        ),
        (
            "what is kept has no unit",
            "return self.unit * apart / self.usual",
            "return apart / self.usual",
            "optimize/guides::a_photograph_is_held_where_its_feature_does_not_fire",
        ),
        (
            "a guide of another objective is taken",
            "        if config.align and {s: m.shape for s, m in guide.moments.items()} != _shapes(view, objective):",
            "        if False:",
            "optimize/guides::guides_that_are_missing_not_used_or_of_something_else_are_told",
        ),
        (
            "at one token a picture starts from what lies under others",
            "    if at_token:  #",
            "    if False:  #",
            "optimize/guides::at_one_token_a_picture_starts_from_the_best_image_though_no_patch_may_fire",
        ),
        (
            "at one token all seeds start from one image",
            "starts = [images[i] for i in order[: max(",
            "starts = [images[i] for i in order[:1][: max(",
            "optimize/guides::at_one_token_a_picture_starts_from_the_best_image_though_no_patch_may_fire",
        ),
        (
            "at one token a seed starts from an image that does not excite it",
            "min(int((scores > 0).sum()), MOST)",
            "len(order)",
            "optimize/guides::at_one_token_a_picture_starts_from_the_best_image_though_no_patch_may_fire",
        ),
        (
            "a large start is decoded",
            '    _check_size(view, torch.empty(*size, device="meta"))',
            "    _check_size(view, image_to_pixels(open_image(start)))",
            "optimize/guides::a_start_that_is_too_large_is_refused_before_it_is_decoded",
        ),
        (
            "a seed of the options does not reach the collage",
            "target, images, config.seed)",
            "target, images)",
            "optimize/guides::the_next_seed_starts_from_the_next_four_images_and_is_pulled_to_the_same_statistics",
        ),
        (
            "parts of the built-in photographs are not looked at",
            "for _, photograph in found[:_CLOSER]:",
            "for _, photograph in found[:0]:",
            "optimize/guides::the_builtin_photographs_that_excite_most_are_found_whole_and_in_parts",
        ),
        (
            "what a guide starts from is forgotten",
            "tuple(map(_keep, starts))",
            'tuple(b"" for _ in starts)',
            "optimize/guides::a_guide_starts_from_the_collage_of_its_images",
        ),
        (
            "photographs lose half of their colors",
            "quality=95, subsampling=0)",
            "quality=95, subsampling=2)",
            "optimize/guides::a_photograph_keeps_the_colors_of_its_pixels",
        ),
    ),
    *_of(
        "optimize/loop",
        (
            "the picture is pulled to its images as if there were no best one",
            "config.align * self.best * misfit",
            "config.align * misfit",
            "optimize/guides::a_guided_picture_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "an aligned feature is excited without end",
            "self.best * torch.tanh(target / self.best)",
            "target",
            "optimize/guides::a_guided_picture_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "the photograph is not kept",
            "config.keep * self.photographs.left(pixels)",
            "0 * self.photographs.left(pixels)",
            "optimize/guides::the_more_a_photograph_is_kept_the_nearer_the_picture_stays",
        ),
        (
            "a picture that is not stretched is rounded",
            "transforms.stretch(pixels, config.contrast) if config.contrast else pixels.clone()",
            "transforms.stretch(pixels, config.contrast)",
            "optimize/recipe::an_old_recipe_without_the_newer_options_gives_the_picture_that_it_gave",
        ),
        (
            "recipes do not have the guide",
            '({"guide": guide.to_json()} if guide else {})',
            "{}",
            "optimize/guides::a_guided_picture_is_replayed_bit_for_bit_from_its_png_alone",
        ),
    ),
    *_of(
        "optimize/canvas",
        (
            "a photograph is stored upside down in its colors",
            '"dc,chw->dhw"',
            '"cd,chw->dhw"',
            "optimize/guides::an_accented_picture_starts_as_the_photograph",
        ),
        (
            "free pixels start as noise beside a photograph",
            "generator=g) if p is None else p for g, p",
            "generator=g) for g, p",
            "optimize/guides::an_accented_picture_starts_as_the_photograph",
        ),
    ),
    *_of(
        "optimize/transforms",
        (
            "pictures are drawn apart around gray",
            "mean = images.mean((2, 3), keepdim=True)",
            "mean = 0.5",
            "optimize/recipe::a_picture_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "every copy has the whole contrast",
            "gain = gain if power is None else gain**power",
            "gain = gain",
            "optimize/recipe::a_picture_is_its_recipe_written_out_in_plain_torch",
        ),
    ),
    *_of(
        "optimize/canvas",
        (
            "frequencies are not scaled",
            "torch.view_as_complex(params) * scale",
            "torch.view_as_complex(params)",
            "optimize/transforms::the_fourier_canvas_is_its_formula_in_numpy",
        ),
        (
            "colors are mixed the wrong way around",
            '"cd,ndhw->nchw"',
            '"dc,ndhw->nchw"',
            "optimize/transforms::the_fourier_canvas_is_its_formula_in_numpy",
        ),
        (
            "pixels leave their range",
            "p.clamp_(0, 1)",
            "p",
            "optimize/transforms::the_pixel_canvas_is_uniform_noise_kept_in_range",
        ),
    ),
    *_of(
        "reading/recording",
        (
            "prefix tokens count as patches",
            "return self.values[:, self.tap.n_prefix :]",
            "return self.values[:, : self.values.shape[1] - self.tap.n_prefix]",
            "reading/recording::scores_are_means_or_maxima_over_patches_alone",
        ),
        (
            "the maximum over patches is their mean",
            "self.patches.amax(1)",
            "self.patches.mean(1)",
            "reading/recording::scores_are_means_or_maxima_over_patches_alone",
        ),
        (
            "rows and columns of a patch are exchanged",
            "tap.n_prefix + row * cols + col",
            "tap.n_prefix + col * cols + row",
            "optimize/at_token::the_score_is_the_value_at_that_token",
        ),
        (
            "the patches of a map are laid out by columns",
            ".reshape(-1, *self.tap.patch_grid)",
            ".reshape(-1, *self.tap.patch_grid[::-1]).mT",
            "reading/recording::a_map_has_the_patches_row_by_row",
        ),
    ),
    *_of(
        "models/taps",
        (
            "taps of other weights are the same",
            "+ tensor.double().cpu().numpy().tobytes()",
            "",
            "models/taps::the_identity_tells_the_taps_and_is_as_before_without",
        ),
        (
            "a tap of a tap forgets the first",
            "added.function if source.function is None else nn.Sequential(source.function, added.function)",
            "added.function",
            "models/taps::a_tap_of_a_tap_is_both_in_turn",
        ),
    ),
    *_of(
        "models/view",
        (
            "taps are lost at another size",
            "extend_layers(layers, view.extra_taps, view.device, view.dtype)",
            "layers",
            "models/taps::it_stays_at_another_size_and_in_half_precision",
        ),
    ),
    *_of(
        "reading/maps",
        (
            "a map is of another site's values",
            "if feature.site != acts.site:",
            "if feature.site.kind != acts.site.kind:",
            "reading/recording::a_map_of_another_sites_values_is_refused",
        ),
        (
            "unusualness is no deviation",
            "(scores - mean) / std",
            "(scores - 0 * mean) / std",
            "models/view::top_features_by_unusualness_are_deviations_from_the_reference",
        ),
    ),
    *_of(
        "optimize/objectives",
        (
            "minus is plus",
            "return self + -other",
            "return self + other",
            "optimize/objectives::objectives_are_added_subtracted_scaled_and_negated_term_by_term",
        ),
        (
            "a minimized feature is revived",
            "        weight > 0\n        and isinstance",
            "        weight\n        and isinstance",
            "optimize/loop::only_a_maximized_neuron_behind_an_ungated_activation_can_be_revived",
        ),
        (
            "terms on one feature overwrite each other",
            "weights[place][n], factor)",
            "weights[place][n].zero_(), factor**2)",
            "optimize/loop::an_objective_is_the_weighted_sum_of_its_targets",
        ),
    ),
    *_of(
        "optimize/objectives",
        (
            "a recipe names a direction by its site too",
            '"name": self.name}',
            '"name": str(self)}',
            "optimize/recipe::an_objective_in_a_recipe_is_as_it_always_was_and_comes_back_the_same",
        ),
    ),
    *_of(
        "optimize/objectives",
        (
            "an objective at a token is the mean over patches",
            "target.token if isinstance(target, AtToken) else None",
            "None",
            "optimize/at_token::the_score_is_the_value_at_that_token",
        ),
        (
            "a recipe forgets the token",
            'f"{v}@{self._token}" if k in',
            "v if k in",
            "optimize/at_token::an_address_at_a_token_is_read_back",
        ),
        (
            "the column is told before the row",
            '"{},{}".format(*self.token)',
            '"{1},{0}".format(*self.token)',
            "optimize/at_token::an_address_at_a_token_is_read_back",
        ),
        (
            "a direction comes back without its token",
            "return AtToken(direction, parse_token(token)) if at else direction",
            "return direction",
            "optimize/at_token::addresses_recipes_and_file_names_tell_features_directions_and_tokens_apart",
        ),
        (
            "a class has tokens",
            "        if at:\n            raise",
            "        if False:\n            raise",
            "optimize/at_token::what_is_no_token_is_refused",
        ),
        (
            "a token that is not there is not refused",
            "            token_position(find_tap(view, target.site), target.site, target.token)\n",
            "",
            "optimize/at_token::a_token_that_is_not_there_is_refused_before_anything_runs",
        ),
        (
            "what is silent at a token stays so",
            "    if isinstance(target, AtToken):\n        target = target.target",
            "    if isinstance(target, AtToken):\n        return False",
            "optimize/at_token::tokens_are_revived_and_dead_as_features_are",
        ),
    ),
    *_of(
        "reading/recording",
        (
            "prefix tokens are counted as patches",
            "return tap.n_prefix + row * cols + col",
            "return row * cols + col",
            "optimize/at_token::the_score_is_the_value_at_that_token",
        ),
        (
            "a patch is counted as if the grid were square",
            "tap.n_prefix + row * cols + col",
            "tap.n_prefix + row * rows + col",
            "optimize/at_token::the_class_token_is_the_first_of_several_prefix_tokens_and_patches_come_after_them",
        ),
        (
            "the class token is the last of the prefix tokens",
            "        return 0\n",
            "        return tap.n_prefix - 1\n",
            "optimize/at_token::the_class_token_is_the_first_of_several_prefix_tokens_and_patches_come_after_them",
        ),
        (
            "the first patch stands for a class token that is not there",
            "if not tap.n_prefix:",
            "if False:",
            "optimize/at_token::a_token_that_is_not_there_is_refused_before_anything_runs",
        ),
    ),
    *_of(
        "optimize/scores",
        (
            "a token is revived by the mean over patches",
            ".sum(acts[s], place[1], ",
            ".sum(acts[s], None, ",
            "optimize/recipe::a_picture_at_a_token_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "a class token that no picture changes is optimized",
            "if not gradient.any():",
            "if False:",
            "optimize/at_token::a_class_token_that_has_seen_nothing_yet_is_refused",
        ),
    ),
    *_of(
        "optimize/penalties",
        (
            "smoothness at a token is that of the mean over patches",
            "acts.scores() if token is None else acts.at(token)",
            "acts.scores()",
            "optimize/at_token::smoothness_is_measured_at_the_token",
        ),
    ),
    *_of(
        "optimize/loop",
        (
            "nobody asks whether a picture changes the class token",
            "    check_sensitive(view, objectives)\n",
            "",
            "optimize/at_token::a_class_token_that_has_seen_nothing_yet_is_refused",
        ),
    ),
    *_of(
        "sites",
        (
            "the column is read before the row",
            "return int(match[1]), int(match[2])",
            "return int(match[2]), int(match[1])",
            "optimize/at_token::an_address_at_a_token_is_read_back",
        ),
    ),
    *_of(
        "cli/optimization",
        (
            "a value at a token is compared with means over patches",
            ' and "@" not in address else None',
            " else None",
            "cli/cli::tokens_are_visualized_and_only_what_is_a_mean_is_compared_with_photographs",
        ),
    ),
    *_of(
        "optimize/draws",
        (
            "numbers of a step are drawn twice",
            "self._numbers, self._coming = None, ",
            "self._coming = ",
            "optimize/draws::numbers_drawn_ahead_are_those_of_the_generator_alone",
        ),
    ),
    *_of(
        "ui/lane",
        (
            "a library that panics lets a visitor wait for ever",
            "except BaseException as error:",
            "except Exception as error:",
            "ui/lane::what_is_no_exception_ends_the_waiting_too",
        ),
    ),
    *_of(
        "optimize/recipe",
        (
            "a processor without bfloat16 does not say that a picture in it will differ",
            'told_precision(config) == "bfloat16"',
            'told_precision(config) == "half"',
            "optimize/recipe::a_picture_in_bfloat16_is_made_again_in_it_and_a_processor_without_says_that_it_differs",
        ),
        (
            "a picture of a GPU asks what the processor has",
            'if device == "cpu" and in_bfloat16',
            "if in_bfloat16",
            "optimize/recipe::what_a_replay_will_differ_by_is_told_by_device_and_precision",
        ),
    ),
    *_of(
        "atlas/write",
        (
            "a search goes on in what another machine has",
            "    if resume:\n        config = replace(config, precision=kept_precision",
            "    if False:\n        config = replace(config, precision=kept_precision",
            "atlas/precision::what_is_gone_on_with_stays_in_its_precision_on_another_machine",
        ),
    ),
    *_of(
        "ui/searching",
        (
            "on ZeroGPU a search is told in one precision and made in another",
            'at_precision(view, "bfloat16" if zero else "auto")',
            'at_precision(view, "auto")',
            "ui/searching::what_is_searched_elsewhere_has_one_precision_for_all",
        ),
    ),
    *_of(
        "ui/sheets",
        (
            "a tile does not tell what real images went in",
            'with_images("optimized picture", recipe)',
            '"optimized picture"',
            "ui/sheets::a_tile_tells_what_real_images_went_in_and_strange_and_damaged_pictures_break_none",
        ),
        (
            "a damaged picture takes a sheet away",
            "            with suppress(ImageError):\n                return cover",
            "            with suppress(AtlasError):\n                return cover",
            "ui/sheets::a_tile_tells_what_real_images_went_in_and_strange_and_damaged_pictures_break_none",
        ),
        (
            "a picture that takes the place of another is not drawn anew",
            "[(i, one.version) for i, one in self.made.items()]",
            "len(self.made)",
            "ui/sheets::a_picture_that_takes_the_place_of_another_is_drawn_anew",
        ),
    ),
    *_of(
        "atlas/store",
        (
            "a stranger's picture without a recipe takes pages and cards away",
            "recipe = read_result(path)",
            "recipe = {'score': 0.5, 'objective': to_objective(feature).to_json()}",
            "atlas/pictures::a_picture_that_does_not_tell_how_it_was_made_is_none_of_the_features",
        ),
        (
            "the picture of another feature is shown as the feature's",
            'same = recipe.get("objective") == to_objective(feature).to_json()',
            'same = bool(recipe.get("objective"))',
            "atlas/pictures::the_picture_of_another_feature_is_none_of_the_features",
        ),
        (
            "the picture of another model is shown as the feature's",
            "return recipe if same and not model_difference(self.manifest, recipe) else None",
            "return recipe if same else None",
            "atlas/pictures::the_picture_of_another_model_is_none_of_the_features",
        ),
        (
            "an atlas is built over a stranger's picture",
            "(path := atlas.picture_path(f)).exists()",
            "(path := atlas.picture_path(f)) == atlas",
            "atlas/pictures::a_picture_that_does_not_tell_how_it_was_made_is_none_of_the_features",
        ),
    ),
    *_of(
        "atlas/page",
        (
            "a damaged picture takes a page away",
            "with suppress(ImageError):",
            "with suppress(AtlasError):",
            "atlas/pictures::a_damaged_or_far_too_large_picture_is_not_shown_and_the_page_is",
        ),
    ),
    *_of(
        "optimize/recipe",
        (
            "a far too large picture is asked for its recipe",
            "RecursionError, Image.DecompressionBombError)",
            "RecursionError)",
            "atlas/pictures::a_damaged_or_far_too_large_picture_is_not_shown_and_the_page_is",
        ),
        (
            "a recipe may tell anything of its images",
            "type(n) is not int or not 0 <= n < 1_000_000",
            "n is None",
            "atlas/pictures::a_picture_that_does_not_tell_how_it_was_made_is_none_of_the_features",
        ),
    ),
    *_of(
        "models/view",
        (
            "at a single patch a model is said to have no features",
            "if view.layers and not resized.layers:",
            "if False:",
            "models/view::an_input_size_off_the_patch_grid_is_refused",
        ),
    ),
    *_of(
        "ui/optimize_tab",
        (
            "a link forgets a long seed",
            'Kept("seed", self.seed, whole(0, 16))',
            'Kept("seed", self.seed, whole(0))',
            "ui/tabs::what_a_link_says_is_restored_and_odd_values_give_the_default",
        ),
    ),
    *_of(
        "ui/guiding",
        (
            "the built-in photographs are read in float32 whatever the picture is made in",
            'view = at_precision(view, "auto")',
            "view = view",
            "ui/making::where_the_processor_has_bfloat16_the_photographs_are_read_in_it_too",
        ),
    ),
    *_of(
        "cli/optimization",
        (
            "the built-in photographs are read in float32 whatever the picture is made in",
            "builtin_images(at_precision(view, config.precision), objective",
            "builtin_images(view, objective",
            "cli/guides::the_photographs_are_read_in_the_precision_of_the_picture",
        ),
    ),
    *_of(
        "cli/atlas",
        (
            "a cluster's images are read in what this machine has",
            "config = replace(config, precision=shared_precision(view, config.precision))",
            "config = replace(config)",
            "cli/guides::a_cluster_makes_pictures_from_images_read_in_what_all_its_machines_have",
        ),
    ),
    *_of(
        "models/device",
        (
            "CPUs with AMX compute in float32",
            'able.get("amx_bf16") or ',
            "",
            "atlas/precision::auto_is_bfloat16_on_a_cpu_that_has_it_in_pictures_and_in_search",
        ),
    ),
    *_of(
        "optimize/guides",
        (
            "real images are read in float32 whatever the picture is made in",
            "guide_by_images(at_precision(view, config.precision), ",
            "guide_by_images(view, ",
            "atlas/precision::real_images_are_read_in_the_precision_of_the_picture",
        ),
    ),
    *_of(
        "ui/guiding",
        (
            "at one token the images of an atlas are those of all patches",
            "guides_by_images(view, wanted, images_from_atlas",
            "guides_by_images(view, feature, images_from_atlas",
            "ui/making::the_images_of_a_chosen_atlas_guide_a_picture_at_one_token_by_what_they_are_there",
        ),
    ),
    *_of(
        "models/view",
        (
            "bfloat16 is a word only",
            "torch.autocast(view.device.type, torch.bfloat16, on)",
            "nullcontext()",
            "atlas/precision::only_the_model_computes_in_bfloat16_not_what_is_made_of_its_values",
        ),
    ),
    *_of(
        "optimize/config",
        (
            "an old recipe is replayed in whatever precision the device likes",
            '"bfloat16" if values.get("autocast") else "float32"',
            '"bfloat16" if values.get("autocast") else "auto"',
            "atlas/precision::an_old_recipe_has_the_precision_that_it_had",
        ),
    ),
    *_of(
        "hub",
        (
            "what one visitor's token brought to the disk is handed to all",
            "if info.gated:",
            "if info.gated and token is None:",
            "ui/visitor::what_one_visitor_brought_to_the_disk_is_not_another_ones",
        ),
        (
            "without the Hub, what a token brought is for all",
            "if isinstance(token, str) and is_closed(of, repo_id) else None",
            "if False else None",
            "ui/visitor::what_one_visitor_brought_to_the_disk_is_not_another_ones",
        ),
        (
            "what is open is found only with the token that brought it",
            "if isinstance(token, str) and is_closed(of, repo_id) else None",
            "if isinstance(token, str) else None",
            "hub::what_a_token_opened_lies_apart_and_what_is_open_does_not",
        ),
        (
            "that a model is private is not learned from a refusal",
            "if _cached_at(of, repo_id).is_dir():",
            "if False:",
            "ui/visitor::without_the_hub_what_the_owner_brought_by_login_is_for_nobody_on_a_space",
        ),
        (
            "what was closed once is so for ever",
            "mark.unlink(missing_ok=True)",
            "pass",
            "ui/visitor::what_was_closed_and_is_open_now_is_served_without_the_hub",
        ),
        (
            "what a token opens is stored where it is for all",
            "        if isinstance(token, str):  # what it brings",
            "        if False:  # what it brings",
            "hub::what_a_token_opens_is_not_stored_where_it_would_lie_with_what_is_open",
        ),
    ),
    *_of(
        "ui/visitor",
        (
            "without the Hub, what the owner brought by login is for all",
            "if on_space() and is_closed(MODEL, model_id):",
            "if False:",
            "ui/visitor::without_the_hub_what_the_owner_brought_by_login_is_for_nobody_on_a_space",
        ),
        (
            "without the Hub, what the owner brought is not theirs on a laptop",
            "if on_space() and is_closed(MODEL, model_id):",
            "if is_closed(MODEL, model_id):",
            "ui/visitor::without_the_hub_what_the_owner_brought_by_login_is_for_nobody_on_a_space",
        ),
        (
            "what one visitor may see another one may",
            "key = what, _digest(token)",
            'key = what, ""',
            "ui/visitor::a_gated_model_is_for_who_may_see_it_before_and_after_it_is_loaded",
        ),
        (
            "the token is sent for what is open too",
            "return opened(False)",
            "return opened(token or False)",
            "ui/visitor::what_is_open_is_asked_for_without_a_token",
        ),
        (
            "an atlas is open to all when one may read what it is of",
            "key = kind, name, _digest(token)",
            "key = kind, name",
            "ui/visitor::a_gated_dataset_and_the_atlas_of_it_are_for_who_may_see_it",
        ),
    ),
    *_of(
        "ui/shelf",
        (
            "the token stays with the model",
            "return replace(snapshot, token=False)",
            "return snapshot",
            "ui/visitor::the_token_is_not_kept_with_the_model_and_its_tokenizer_is_there",
        ),
    ),
    *_of(
        "ui/durations",
        (
            "a GPU is asked for by the guess for ever",
            "if known else guess",
            "if not known else guess",
            "ui/durations::a_job_asks_by_the_guess_once_and_then_by_what_it_took_on_that_model",
        ),
    ),
    *_of(
        "ui/growing",
        (
            "means over patches of photographs stand beside a value at a token",
            "feature = feature_of(wanted)",
            "feature = feature_of(wanted, at_token=True)",
            "ui/making::a_token_has_its_own_score_and_nothing_of_the_mean_over_patches_beside_it",
        ),
        (
            "every picture of a run has the first one's guide",
            "[self.guides[seed] for seed in seeds]",
            "[next(iter(self.guides.values())) for _ in seeds]",
            "ui/making::without_an_atlas_the_built_in_photographs_that_excite_it_most_guide_a_picture",
        ),
        (
            "a feature that an atlas guides is made as from noise if nothing is chosen",
            "VisualizeConfig.preset(ALIGNED) if guided and guided.guides else",
            "VisualizeConfig.preset(ALIGNED) if False else",
            "ui/making::if_nothing_is_chosen_an_atlas_guides_its_features_and_nothing_else",
        ),
    ),
    *_of(
        "cluster",
        (
            "a cluster of this machine alone is looked for elsewhere",
            'if options["address"] == "local" or _is_only_here(options["address"]):',
            'if options["address"] == "local":',
            "cluster::ray_keeps_to_the_loopback_address_only_where_its_cluster_does",
        ),
        (
            "a cluster that listens everywhere is taken for one of this machine alone",
            'f"127.0.0.2:{port}"',
            'f"127.0.0.2:{port}0"',
            "cluster::ray_keeps_to_the_loopback_address_only_where_its_cluster_does",
        ),
    ),
    *_of(
        "experiments/pictures/agreement",
        (
            "the pictures of all seeds are the atlas's",
            "known = atlas if given and seed == config.seed else None",
            "known = atlas",
            "experiments/pictures/agreement::beside_an_atlas_the_pictures_of_further_seeds_are_made",
        ),
        (
            "pictures beyond the first batch are not embedded",
            "for some in pixels.split(_BATCH)]",
            "for some in pixels.split(_BATCH)[:1]]",
            "experiments/pictures/agreement::pictures_beyond_the_first_batch_are_embedded_as_the_others",
        ),
        (
            "noise is black",
            "noise = torch.rand(",
            "noise = 0 * torch.rand(",
            "experiments/pictures/agreement::every_share_is_that_of_asking_one_trial_at_a_time",
        ),
        (
            "transfer is not in units of the best image",
            "transfer / float(column.max())",
            "transfer",
            "experiments/pictures/agreement::every_share_is_that_of_asking_one_trial_at_a_time",
        ),
        (
            "saturation is the mean of red",
            "over(looks[:, 6].tolist())",
            "over(looks[:, 0].tolist())",
            "experiments/pictures/agreement::the_table_of_pictures_tells_of_the_first_picture_of_each_feature",
        ),
        (
            "the middle 90 % is the lower half",
            "np.mean([5 <= percentile(x, usual[:, column]) <= 95",
            "np.mean([0 <= percentile(x, usual[:, column]) <= 50",
            "experiments/pictures/agreement::the_table_of_pictures_tells_of_the_first_picture_of_each_feature",
        ),
    ),
    *_of(
        "experiments/pictures/judge",
        (
            "the model judges itself at another size",
            "if _is_same(view.module, model.module):",
            "if view.identity == model.identity:",
            "experiments/pictures/agreement::a_judge_is_another_network_than_the_model",
        ),
        (
            "networks of one architecture are the same",
            "return most and all(torch.equal(own[n].to(others[n]), others[n]) for n in common)",
            "return most",
            "experiments/pictures/agreement::a_judge_is_another_network_than_the_model",
        ),
    ),
    *_of(
        "ui/editor",
        (
            "a painting has as many layers as a stranger says",
            "int(index) < _LAYERS",
            "int(index) >= 0",
            "ui/inputs::a_painting_has_few_layers",
        ),
        (
            "what is sent for a painting is kept for ever",
            "LRUCache(_KEPT_BYTES, _size_of)",
            "LRUCache(10**12, _size_of)",
            "ui/inputs::paintings_that_nobody_asks_for_are_forgotten",
        ),
        (
            "a large picture is taken for a painting",
            "fits = max(image.size) <= _LARGER * side",
            "fits = True",
            "ui/inputs::a_painting_larger_than_its_canvas_is_refused_before_it_is_decoded",
        ),
        (
            "files of a painting are not looked at",
            "(told := _file_too_large(part.path, side))",
            "(told := '')",
            "ui/inputs::a_painting_larger_than_its_canvas_is_refused_before_it_is_decoded",
        ),
    ),
    *_of(
        "ui/events",
        (
            "a picture in the request is decoded by gradio",
            "return _keep_inline(payload.url, component.GRADIO_CACHE)",
            "return gr.Image.preprocess(component, payload)",
            "ui/inputs::a_picture_in_the_request_is_decoded_by_the_gate_alone",
        ),
    ),
    *_of(
        "ui/lane",
        (
            "any number of runs wait",
            "if len(self._runs) > MOST_RUNS:",
            "if False:",
            "ui/lane::no_more_runs_wait_than_the_server_has_threads_for",
        ),
    ),
    *_of(
        "ui/shelf",
        (
            "who waited for the Hub counts for ever",
            "            self._asking.release()\n",
            "            pass\n",
            "ui/shelf::no_more_visitors_wait_for_the_hub_than_the_server_has_threads_for",
        ),
        (
            "who uses a model that is there waits for those who ask the Hub",
            "same = by_name or next(",
            "same = next(",
            "ui/shelf::no_more_visitors_wait_for_the_hub_than_the_server_has_threads_for",
        ),
        (
            "an open atlas is asked for while others wait for the Hub",
            "known = None if token else self._atlases.get(hashkey(name))",
            "known = None",
            "ui/shelf::an_atlas_that_is_open_is_there_however_many_wait_for_the_hub",
        ),
        (
            "models that are compared take any memory",
            "sum(map(weight_bytes, found)) > kept_bytes()",
            "False",
            "ui/shelf::models_that_are_compared_fit_on_the_shelf_together",
        ),
    ),
    *_of(
        "ui/experiments_tab",
        (
            "any number of models is compared",
            "if len(ids) > MOST_MODELS:",
            "if False:",
            "ui/papers::few_models_are_compared_and_none_is_asked_for_before",
        ),
    ),
    *_of(
        "ui/uploads",
        (
            "a picture in the request is no upload",
            "_size(scope) > _LARGE or ",
            "",
            "ui/uploads::a_large_request_counts_as_an_upload_wherever_it_goes",
        ),
    ),
    *_of(
        "ui/atlas_panel",
        (
            "photographs are kept before the numbers are read",
            'one = whole_number("layer", layer) if layers == "one" else None\n',
            'one = int(layer) if layers == "one" else None\n',
            "ui/atlas_panel::a_number_that_is_missing_is_told_before_the_photographs_are_kept",
        ),
    ),
    *_of(
        "ui/beside",
        (
            "a damaged atlas takes the card away",
            "card = feature_card(self._shelf, view, None, feature)",
            'return ""',
            "ui/making::without_a_fitting_atlas_card_and_page_of_the_feature_are_of_the_built_in_photographs",
        ),
        (
            "the card is not of the chosen atlas",
            "known = fitting_atlas(self._shelf, view, feature.site, atlas)",
            "known = fitting_atlas(self._shelf, view, feature.site)",
            "ui/making::the_card_and_the_page_of_the_feature_are_of_the_chosen_atlas",
        ),
    ),
    *_of(
        "ui/statistics",
        (
            "uploaded photographs are told as those of a dataset",
            "if whose == UPLOADED",
            "if False",
            "ui/statistics::images_that_an_atlas_left_out_at_a_site_are_not_counted",
        ),
    ),
    *_of(
        "ui/guiding",
        (
            "where no image of an atlas excites a feature, nothing is made if nothing is chosen",
            "if asked.preset == ALIGNED:\n                    raise",
            "if asked.preset:\n                    raise",
            "ui/making::if_nothing_is_chosen_an_atlas_guides_its_features_and_nothing_else",
        ),
        (
            "what the photographs gave to one objective is taken for another",
            "key = view.identity.key, asked.objective",
            'key = view.identity.key, ""',
            "ui/making::what_the_built_in_photographs_gave_is_kept_for_the_next_picture",
        ),
        (
            "another seed reads the photographs again",
            "key = view.identity.key, asked.objective",
            'key = view.identity.key, f"{asked.objective} {asked.seeds}"',
            "ui/making::what_the_built_in_photographs_gave_is_kept_for_the_next_picture",
        ),
    ),
    *_of(
        "images",
        (
            "pixels are cut down to 8 bits, not rounded",
            "(pixels.clamp(0, 1) * 255).round()",
            "(pixels.clamp(0, 1) * 255)",
            "images::pixels_are_rounded_and_cut_off_at_both_ends",
        ),
    ),
    *_of(
        "manifest",
        (
            "a file is written over in place",
            "        part.replace(path)",
            "        path.write_bytes(part.read_bytes())\n        path.chmod(0o600)",
            "manifest::a_file_is_replaced_when_it_is_whole",
        ),
        (
            "what failed takes the place of the file",
            "        part.unlink(missing_ok=True)",
            "        part.replace(path) if part.exists() else None",
            "manifest::a_file_whose_writing_fails_stays_as_it_was",
        ),
    ),
    *_of(
        "reading/batches",
        (
            "a row beyond the limit is asked for",
            "stream = islice(rows, limit)",
            "stream = iter(rows)",
            "reading/batches::no_row_beyond_the_limit_is_asked_for",
        ),
        (
            "nothing is worked on ahead",
            "len(waiting) > _WAITING_BATCHES",
            "waiting",
            "reading/batches::three_batches_are_on_their_way_while_one_is_used",
        ),
        (
            "what is left out counts as usable",
            "if not i.problem and i.value is not None]",
            "]",
            "reading/batches::what_is_left_out_says_why_and_the_rest_is_usable",
        ),
    ),
    *_of(
        "optimize/config",
        (
            "preset paper has no smoothness",
            '"jitter": 32,\n    "smoothness": 4e-3',
            '"jitter": 32,\n    "smoothness": 0.0',
            "optimize/objectives::presets_are_as_smooth_as_they_say",
        ),
    ),
    *_of(
        "optimize/loop",
        (
            "noise never falls",
            "config.noise * (1 - progress)",
            "config.noise",
            "optimize/recipe::a_picture_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "the learning rate never falls",
            'if config.decay == "cosine":',
            'if config.decay == "sine":',
            "optimize/recipe::a_picture_is_its_recipe_written_out_in_plain_torch",
        ),
        (
            "smoothness is a reward",
            "(self.smoothness * roughness - target)",
            "(-self.smoothness * roughness - target)",
            "optimize/loop::more_smoothness_gives_a_smoother_picture",
        ),
        (
            "dead features are not revived",
            "torch.where(dead, read.pre_values.mean(1), target)",
            "torch.where(dead, target, target)",
            "optimize/loop::a_dead_feature_comes_alive_with_revive_and_stays_dead_without",
        ),
        (
            "features of other sites share a picture's copies",
            "[generators[r] for r in rows]",
            "[generators[0] for r in rows]",
            "optimize/loop::features_in_a_batch_get_the_picture_they_get_alone",
        ),
    ),
    *_of(
        "optimize/scores",
        (
            "the transfer score is that of the picture itself",
            "blurred).mean(1)",
            "pixels.unsqueeze(1)).mean(1)",
            "optimize/recipe::transfer_is_scored_on_eight_fixed_turns_zooms_and_blurs",
        ),
    ),
    *_of(
        "optimize/recipe",
        (
            "a dead picture is alive",
            'return float(recipe["score"]) > 0 or',
            'return float(recipe["score"]) > -9 or',
            "optimize/recipe::a_picture_is_alive_if_its_feature_fires_on_it_at_the_end",
        ),
    ),
    *_of(
        "atlas/fold",
        (
            "the least of equal keys is not the first",
            "order = owners.argsort(1)\n",
            "order = owners.argsort(1, descending=True)\n",
            "atlas/search::a_ranking_over_any_chunks_is_the_sort_of_the_whole_with_ties_by_key",
        ),
        (
            "identical images fill a ranking",
            "if again.any():",
            "if False:",
            "atlas/search::a_key_is_ranked_once_by_its_highest_value_over_any_chunks_orders_and_ranks",
        ),
        (
            "the least activating images are the most activating ones",
            "(-columns).where(finite, -math.inf)",
            "columns.where(finite, -math.inf)",
            "atlas/search::the_ranked_images_are_those_of_sorting_everything",
        ),
        (
            "two processes' deviations are added as they are",
            "+ step**2 * (self.n * n / whole)",
            "",
            "atlas/search::moments_are_those_of_float64_even_far_from_zero",
        ),
        (
            "bins of the sketch are one off",
            "clamp(-1, N_BINS - 1) + 1",
            "clamp(-1, N_BINS - 1) + 2",
            "atlas/search::a_bin_of_the_sketch_stands_for_its_values_within_the_stated_error",
        ),
        (
            "what is known of an image is that of another feature",
            "facts(rows[row], image)",
            "facts(row, image)",
            "atlas/fold::places_are_asked_for_of_what_enters_a_ranking",
        ),
        (
            "values that are not finite are ranked",
            "[self.top.update(columns.where(finite, -math.inf), owners, facts)]",
            "[self.top.update(columns, owners, facts)]",
            "atlas/fold::an_image_without_finite_values_is_ranked_nowhere_though_all_others_are_negative",
        ),
        (
            "correlations are about zero instead of the mean",
            "rest = slots[:-1] - self.mean[:, None] * slots[-1]",
            "rest = slots[:-1]",
            "atlas/fold::correlations_are_exact_while_no_two_images_share_a_slot",
        ),
        (
            "of an image that comes again, the place of its weaker value is kept",
            "order, candidates = order.gather(1, best), candidates.gather(1, best)",
            "candidates = candidates.gather(1, best)",
            "atlas/search::a_key_is_ranked_once_by_its_highest_value_over_any_chunks_orders_and_ranks",
        ),
    ),
    *_of(
        "atlas/search",
        (
            "the limit counts for each process",
            "zip(range(after, limit)",
            "zip(range(after, limit * n_ranks)",
            "atlas/search::a_limit_means_the_same_rows_for_any_number_of_processes",
        ),
    ),
    *_of(
        "atlas/spreading",
        (
            "floors are above the last of the ranking",
            "last - _MARGIN * last.abs()",
            "last + _MARGIN * last.abs()",
            "atlas/spreading::floors_of_rankings_that_are_not_full_keep_nothing_out",
        ),
        (
            "machines compute in what this one has",
            '"float32" if wanted == "auto" else wanted',
            "wanted",
            "atlas/spreading::machines_compute_in_float32_unless_asked_whatever_this_one_has",
        ),
        (
            "every group of pictures is guided by the first one's images",
            "task.config, task.guides[i])",
            "task.config, task.guides[0])",
            "atlas/spreading::pictures_of_workers_are_guided_by_their_own_images",
        ),
        (
            "the crops of one of two parts are lost",
            "self.crops[key] = min(self.crops.get(key, crop), crop)",
            "crop = min(self.crops.get(key, crop), crop)",
            "atlas/spreading::parts_of_shares_in_any_order_and_tree_are_the_state_of_one_process",
        ),
        (
            "a copy of an image keeps the name of the part that came first",
            "DO UPDATE SET name = excluded.name, ",
            "DO UPDATE SET name = name, ",
            "atlas/search::copies_in_the_shares_of_several_processes_merge_to_one",
        ),
        (
            "shares need not have files of their own",
            "if n_files % n == 0)",
            "if n_files)",
            "atlas/spreading::shares_have_files_of_their_own_and_enough_rows",
        ),
    ),
    *_of(
        "cluster",
        (
            "a lost connection starts a cluster here",
            "            if ray.is_initialized():",
            "            if True:",
            "cluster::a_lost_connection_is_told_and_starts_no_cluster_here",
        ),
        (
            "a machine that lacks the package is tried again and again",
            "            _check_installed(version)\n",
            "",
            "cluster::a_machine_that_lacks_the_package_is_told_at_once",
        ),
        (
            "what two workers did counts twice",
            "        if self._is_done(job):\n            return\n",
            "",
            "cluster::what_two_workers_did_counts_once",
        ),
        (
            "each worker takes all CPUs of its machine",
            "[n // n_gpus for n, n_gpus in cpus if n_gpus]",
            "[n for n, n_gpus in cpus if n_gpus]",
            "cluster::workers_have_a_gpu_each_or_a_machines_cpus",
        ),
    ),
    *_of(
        "config",
        (
            "a control of any seed",
            "if not 0 <= seed <= 2**53:",
            "if False:",
            "models/identity::a_recipe_of_no_control_cannot_be_followed",
        ),
        (
            "texts without end",
            "if len(texts) > MOST_TEXTS or longest > LONGEST_TEXT:",
            "if len(texts) > MOST_TEXTS:",
            "atlas/search::a_strangers_atlas_has_no_texts_without_end",
        ),
    ),
    *_of(
        "atlas/store",
        (
            "an atlas of texts without end is opened",
            'if site in names and kind == "text":',
            "if False:",
            "atlas/search::a_strangers_atlas_has_no_texts_without_end",
        ),
    ),
    *_of(
        "optimize/replay",
        (
            "a control that is none ends in the libraries",
            "        if control:\n            check_control(control, control_seed)\n",
            "",
            "models/identity::a_recipe_of_no_control_cannot_be_followed",
        ),
    ),
    *_of(
        "atlas/config",
        (
            "layers are searched twice",
            "sorted(set(parse_runs(text, name)))",
            "sorted(parse_runs(text, name))",
            "atlas/config::the_command_line_gives_the_config_its_types",
        ),
    ),
    *_of(
        "templates",
        (
            "HTML of strangers is kept as it is",
            "autoescape=True",
            "autoescape=False",
            "atlas/search::html_in_the_names_of_models_datasets_labels_and_words_is_shown_as_text",
        ),
    ),
    *_of(
        "atlas/words",
        (
            "absent images count as zeros",
            'mode="mean", padding_idx=absent',
            'mode="mean"',
            "atlas/search::missing_images_do_not_count_in_the_agreement",
        ),
        ("chance is the median", "quantile(0.95)", "quantile(0.5)", "atlas/words::chance_lies_above_95_of_100_sets"),
        (
            "a word that fits everything wins",
            "(similarity - similarity.mean(0)) /",
            "similarity /",
            "atlas/search::words_are_those_that_stand_out_most_in_a_features_top_images",
        ),
    ),
    *_of(
        "reading/classification",
        (
            "the likeliest labels are not the first",
            "return [\n            [(self.labels[i], p)",
            "return [\n            [(self.labels[-1 - i], p)",
            "reading/classification::logits_are_the_models_own_with_the_repositorys_labels",
        ),
        (
            "templates of a label are those of the next one",
            "for label in labels for t in templates]",
            "for t in templates for label in labels]",
            "atlas/embeddings::embeddings_of_several_labels_and_templates_are_not_mixed",
        ),
    ),
    *_of(
        "reading/attention",
        (
            "only one head is read",
            "weights.mean(1)).cpu()",
            "weights[:, 0]).cpu()",
            "reading/attention::attention_is_that_of_the_librarys_own_open_code",
        ),
        (
            "attention has no temperature",
            "self.query.shape[-1] ** -0.5",
            "1.0",
            "reading/attention::attention_is_that_of_the_librarys_own_open_code",
        ),
        (
            "the window is that of the first patch",
            "weights[:, row // n_queries, :, row % n_queries]",
            "weights[:, 0, :, row % n_queries]",
            "reading/window_attention::a_window_of_swin_is_where_it_was_cut",
        ),
        (
            "layers are joined in the reverse order",
            "layer / layer.sum(-1, keepdim=True) @ joined[-1]",
            "joined[-1] @ (layer / layer.sum(-1, keepdim=True))",
            "reading/joint_attention::joint_attention_is_the_product_of_the_layers_with_their_skips",
        ),
        (
            "skips are twice as strong",
            "(1 - residual) * weights + residual * identity",
            "(1 - residual) * weights + 2 * residual * identity",
            "reading/joint_attention::joint_attention_is_the_product_of_the_layers_with_their_skips",
        ),
    ),
    *_of(
        "inside/components",
        (
            "the foreground is the side of the border",
            "signs[0] = -values",
            "signs[0] = values",
            "inside/components::the_foreground_is_the_side_away_from_the_border",
        ),
        (
            "signs are those of the decomposition",
            "argmax(1, keepdim=True))[:, 0].sign()",
            "argmax(1, keepdim=True))[:, 0].abs().sign()",
            "inside/components::signs_do_not_depend_on_the_sign_of_the_decomposition",
        ),
    ),
    *_of(
        "inside/similarity",
        (
            "long tokens count more",
            "_units(acts.values[0, list(tokens)]).mean(0)",
            "acts.values[0, list(tokens)].float().mean(0)",
            "inside/similarity::several_tokens_count_by_their_direction_and_not_their_length",
        ),
        (
            "matches need not be mutual",
            "(back[best] == torch.arange(len(best), device=best.device))",
            "(best >= 0)",
            "inside/similarity::matches_are_mutual_and_the_best_comes_first",
        ),
    ),
    *_of(
        "inside/norms",
        (
            "prefix tokens count in the median",
            "x[:, n:].median(",
            "x.median(",
            "inside/norms::long_prefix_tokens_do_not_move_the_measure",
        ),
        (
            "the range that is left is told",
            "1 - float(kept.max() - kept.min()) / spread",
            "float(kept.max() - kept.min()) / spread",
            "inside/norms::a_map_loses_the_range_that_only_outliers_span",
        ),
    ),
    *_of(
        "inside/lens",
        (
            "every layer shows the last",
            "acts[site].values, site.layer)",
            "acts[sites[-1]].values, site.layer)",
            "inside/lens::each_token_gets_the_label_of_the_norm_and_the_classifier",
        ),
    ),
    *_of(
        "inside/words",
        (
            "tokens are not normed",
            "values = self.norm(tokens)",
            "values = tokens",
            "inside/words::a_text_at_the_class_token_of_clip_is_its_cosine_with_the_picture",
        ),
        (
            "models with other texts are one",
            'ExtraTap("resid", head, tuple(texts), of_model=True)',
            'ExtraTap("resid", head, of_model=True)',
            "inside/words::a_model_with_texts_is_identified_by_them_and_not_by_digits_that_differ_between_devices",
        ),
        (
            "every text of an atlas is its first",
            'return f"{site}:{names.index(wanted)}"',
            'return f"{site}:0"',
            "cli/words::texts_are_searched_and_an_atlas_of_them_has_their_pages_and_pictures",
        ),
        (
            "values are no cosines",
            "functional.linear(functional.normalize(values, dim=-1), self.embeddings)",
            "functional.linear(values, self.embeddings)",
            "inside/words::a_text_at_a_patch_of_siglip_is_its_cosine_if_all_patches_were_this_one",
        ),
    ),
    *_of(
        "inside/edits",
        (
            "heads are one feature apart",
            "slice(int(index) * width, (int(index) + 1) * width)",
            "slice(int(index), int(index) + width)",
            "inside/edits::a_head_is_its_own_columns_of_the_output_projection",
        ),
        (
            "the length of a direction counts",
            "unit = torch.nn.functional.normalize(part.new_tensor(self.direction), dim=0)",
            "unit = part.new_tensor(self.direction)",
            "inside/edits::only_the_component_along_a_direction_is_changed",
        ),
    ),
    *_of(
        "inside/heads",
        (
            "a patch is looked for by columns first",
            "layer.n_prefix + token[0] * cols + token[1]",
            "layer.n_prefix + token[1] * cols + token[0]",
            "inside/heads::the_mean_of_heads_is_the_averaged_attention_on_the_grid",
        ),
        (
            "batches count alike, however many pictures they have",
            "rows.double().sum(0)",
            "rows.double().mean(0) * len(pixels) ** 0",
            "inside/heads::what_heads_look_at_is_the_mean_over_pictures_of_all_batches",
        ),
    ),
    *_of(
        "inside/relevance",
        (
            "negative products count too",
            "(gradient * attention)[0].clamp_min(0).mean(0)",
            "(gradient * attention)[0].mean(0)",
            "inside/relevance::chefers_map_is_the_papers_formula",
        ),
        (
            "later layers' attention is explained too",
            "{layer.name: Tensor.detach for layer in view.layers}",
            "{}",
            "inside/relevance::legrads_map_is_the_papers_formula",
        ),
        (
            "the mean color counts",
            "(pixels - pixels.new_tensor(view.mean)[:, None, None])",
            "pixels",
            "inside/relevance::gradient_times_input_is_summed_over_the_pixels_of_each_patch",
        ),
    ),
    *_of(
        "inside/curves",
        (
            "the least relevant patches go first",
            "argsort(descending=True, stable=True)",
            "argsort(stable=True)",
            "inside/curves::curves_are_those_of_pictures_pasted_patch_by_patch",
        ),
        (
            "an area is the mean of the points, however far apart",
            "float(torch.trapezoid(curve.double(), self.shares.double()))",
            "float(curve.mean())",
            "inside/curves::areas_are_means_of_the_curves",
        ),
    ),
    *_of(
        "experiments/perturb",
        (
            "salient tiles are all tiles",
            '"salient": salient, "non-salient"',
            '"salient": np.ones_like(salient), "non-salient"',
            "experiments/perturb::as_many_tiles_are_blacked_out_as_the_ratio_says",
        ),
        (
            "non-salient tiles are salient ones",
            '"non-salient": ~salient}',
            '"non-salient": salient}',
            "experiments/perturb::as_many_tiles_are_blacked_out_as_the_ratio_says",
        ),
        (
            "a tile is salient from 15 % on",
            "> _OBJECT_SHARE",
            ">= _OBJECT_SHARE",
            "experiments/neurons/occlude::object_tiles_are_those_with_more_than_fifteen_percent",
        ),
        (
            "the mask stays where the picture is shuffled",
            "_reorder(mask, side, order), order, ~moved",
            "mask, order, ~moved",
            "experiments/perturb::shuffling_moves_picture_and_mask_together_and_can_be_undone",
        ),
        (
            "void belongs to an object",
            "inside & (picked <= _VOID)",
            "inside",
            "experiments/perturb::a_mask_goes_through_the_models_own_crop",
        ),
    ),
    *_of(
        "experiments/neurons/filters",
        (
            "a mosaic has the patches' columns only",
            "filters.weight[index].repeat(1, rows, cols)",
            "filters.weight[index].mT.repeat(1, rows, cols)",
            "experiments/neurons/filters::a_mosaic_is_all_views_at_their_places",
        ),
        (
            "white is the 95th percentile",
            "white: float = 100.0) -> float",
            "white: float = 95.0) -> float",
            "experiments/neurons/filters::display_is_relative_to_the_largest_and_negative_is_black",
        ),
        (
            "a filter that is low on the object is a bad one",
            "2 * np.abs(area - 0.5)",
            "2 * (area - 0.5)",
            "experiments/neurons/filters::filters_are_ranked_by_the_area_under_the_curve",
        ),
        (
            "convergence counts each patch with itself",
            "(cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(-1))",
            "cosines.sum((1, 2))",
            "experiments/neurons/filters::numbers_beside_views_are_those_of_the_rows",
        ),
    ),
    *_of(
        "experiments/neurons/clusters",
        (
            "purity counts every cluster's tokens",
            '"purity": counts.max(1).sum()',
            '"purity": counts.sum(1).sum()',
            "experiments/neurons/clusters::clusters_that_mix_objects_are_counted_by_their_commonest",
        ),
        (
            "the radius is that of one object",
            "eps = float(np.mean(steps))",
            "eps = float(steps[0])",
            "experiments/neurons/clusters::the_worked_example",
        ),
        (
            "silhouette counts noise",
            "silhouette_score(tokens[clustered], labels[clustered], metric",
            "silhouette_score(tokens, labels, metric",
            "experiments/neurons/clusters::the_worked_example",
        ),
        (
            "a small part owns a patch",
            "cover - 1e-9, np.array(kept)",
            "cover / 2, np.array(kept)",
            "experiments/neurons/clusters::an_object_owns_a_patch_from_two_fifths_on",
        ),
    ),
    *_of(
        "experiments/neurons/group",
        (
            "t-SNE is always of block 0",
            "embed_tokens(outputs[block], config.seed)[n:]",
            "embed_tokens(outputs[0], config.seed)[n:]",
            "experiments/neurons/group::tsne_is_of_the_outputs_of_the_named_blocks",
        ),
        (
            "the last block is never drawn",
            "round(block * (n_layers - 1) / 11)",
            "round(block * (n_layers - 2) / 11)",
            "experiments/neurons/group::blocks_stand_where_they_do_in_twelve_and_both_ends_are_among_them",
        ),
        (
            "shuffled scenes are not",
            "changed.photo, changed.mask, names, config, number)",
            "photo, mask, names, config, number)",
            "experiments/neurons/group::every_number_of_every_variant",
        ),
    ),
    *_of(
        "experiments/neurons/views",
        (
            "level l has passed l + 1 layers",
            "rows = [(level, joint.views[level, token]) for level in levels]",
            "rows = [(level, joint.views[min(level + 1, len(joint.views) - 1), token]) for level in levels]",
            "experiments/neurons/views::every_picture_by_the_papers_rules_unless_told_otherwise",
        ),
    ),
    *_of(
        "experiments/neurons/occlude",
        (
            "views are of the layer before",
            "seen.joint.views[layer + 1, token] for seen",
            "seen.joint.views[layer, token] for seen",
            "experiments/neurons/occlude::every_number_and_curve",
        ),
        (
            "shuffled patches are compared with those in their place",
            "before = before[:, sources]",
            "before = before[:, :]",
            "experiments/neurons/occlude::every_number_and_curve",
        ),
    ),
    *_of(
        "experiments/pictures/spatial",
        (
            "the sum is over all positive patches",
            "(values * active).sum(-1)]",
            "values.clamp_min(0).sum(-1)]",
            "experiments/pictures/spatial::active_patches_are_blacked_out_one_by_one_and_others_as_the_control",
        ),
        (
            "the control blacks out active patches",
            "outside[:count]] = 0",
            "inside[:count]] = 0",
            "experiments/pictures/spatial::active_patches_are_blacked_out_one_by_one_and_others_as_the_control",
        ),
    ),
    *_of(
        "experiments/pictures/narrow_sites",
        (
            "dead features are compared too",
            "if a.alive and b.alive]",
            "]",
            "experiments/pictures/narrow_sites::every_column_is_of_live_features_and_dead_ones_are_counted",
        ),
        (
            "the share of low frequencies is told",
            "torch.hypot(fy[:, None], fx[None]) > 0.5",
            "torch.hypot(fy[:, None], fx[None]) < 0.5",
            "experiments/pictures/narrow_sites::the_high_frequency_share_of_known_pictures",
        ),
    ),
    *_of(
        "experiments/pictures/trials",
        (
            "copies in other batches count again",
            "for key, crop in crops.items() if key not in reading.keys]",
            "for key, crop in crops.items()]",
            "experiments/pictures/agreement::an_image_counts_once_wherever_its_copies_are",
        ),
        (
            "exemplars are among the images that are asked about",
            "return photographs.ranked(feature, helps=True)[:n]",
            "return photographs.ranked(feature, helps=False)[:n]",
            "experiments/pictures/agreement::every_share_is_that_of_asking_one_trial_at_a_time",
        ),
        (
            "the judge's depth is chosen by the images that are asked about",
            "asked = {f: queries(photographs, f, helps=True, skip=N_EXEMPLARS) for f in live}",
            "asked = {f: queries(photographs, f, helps=False, skip=N_EXEMPLARS) for f in live}",
            "experiments/pictures/agreement::what_is_asked_about_changes_nothing_in_the_choice_of_depth",
        ),
        (
            "a judge's values are not standardized",
            "parts = [(values[d].numpy() - self.centers[d][0]) / self.centers[d][1] for d in depths]",
            "parts = [values[d].numpy() for d in depths]",
            "experiments/pictures/agreement::every_share_is_that_of_asking_one_trial_at_a_time",
        ),
    ),
    *_of(
        "experiments/pictures/agreement",
        (
            "the picture of the feature itself counts as another's",
            "if f.site == feature.site and f != feature for x in e]",
            "if f.site == feature.site for x in e]",
            "experiments/pictures/agreement::every_share_is_that_of_asking_one_trial_at_a_time",
        ),
    ),
    *_of(
        "experiments/accuracy/token_mixing",
        (
            "isolating CLS is the natural model",
            "None if plan.isolation else isolated_logits(view, pixels)",
            "None if plan.isolation else natural",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
        (
            "the mean of patches is the natural model",
            "ways = [natural, isolated, *means(acts[site])]",
            "ways = [natural, isolated, natural, *means(acts[site])[1:]]",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
        (
            "the mean of all tokens is the natural model",
            "ways = [natural, isolated, *means(acts[site])]",
            "ways = [natural, isolated, *means(acts[site])[:2], natural, natural]",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
        (
            "top-5 of a patch is top-1",
            "is_right(each, repeated, k)",
            "is_right(each, repeated, 1)",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
        (
            "the sweep isolates one span for all",
            "isolated_logits(view, pixels, start, stop) for start, stop",
            "isolated_logits(view, pixels) for start, stop",
            "experiments/accuracy/token_mixing::the_sweep_isolates_up_to_each_layer_and_after_it",
        ),
        (
            "the map is transposed",
            "maps[view.model_id] = np.nanmean(by_place[1], 0).reshape(view.layers[-1].patch_grid)",
            "maps[view.model_id] = np.nanmean(by_place[1], 0).reshape(view.layers[-1].patch_grid).T",
            "experiments/accuracy/token_mixing::the_map_holds_every_place_row_by_row",
        ),
        (
            "means after the norm are taken before it",
            "_normed(view, norm, some).mean(1), norm)",
            "some.mean(1), norm)",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
    ),
    *_of(
        "reading/tokens",
        (
            "the isolated class token is that of the first picture",
            "pixels if start else pixels[:1]",
            "pixels[:1]",
            "reading/tokens::isolation_in_some_layers_equals_attention_masks",
        ),
        (
            "positions stay",
            "parameter.data.zero_()",
            "parameter.data.clone()",
            "experiments/accuracy/position::every_column_is_that_of_a_model_and_pictures_changed_by_hand",
        ),
        (
            "patches see the class token",
            "inputs[view.layers[start].name] = lambda tokens: tokens[:, n:]",
            "inputs[view.layers[start].name] = lambda tokens: tokens",
            "reading/tokens::isolation_in_some_layers_equals_attention_masks",
        ),
        (
            "isolation never ends",
            "stop = len(view.layers) - 1 if stop is None else stop",
            "stop = len(view.layers) if stop is None else stop",
            "experiments/accuracy/token_mixing::every_number_equals_a_vit_written_out",
        ),
    ),
    *_of(
        "experiments/accuracy/position",
        (
            "nothing is zeroed",
            "crop_logits(zeroed, natural, config.batch)",
            "crop_logits(view, natural, config.batch)",
            "experiments/accuracy/position::every_column_is_that_of_a_model_and_pictures_changed_by_hand",
        ),
        (
            "nothing is shuffled",
            "crop_logits(view, shuffled, config.batch)",
            "crop_logits(view, natural, config.batch)",
            "experiments/accuracy/position::every_column_is_that_of_a_model_and_pictures_changed_by_hand",
        ),
    ),
    *_of(
        "experiments/accuracy/low_pass",
        (
            "nothing is filtered",
            "masks(*view.input_size, config.keep))",
            "torch.ones_like(masks(*view.input_size, config.keep)))",
            "experiments/accuracy/low_pass::every_number_equals_numpys",
        ),
        (
            "circles are squares",
            "for d in (square, distance)]",
            "for d in (square, square)]",
            "experiments/accuracy/low_pass::masks_are_symmetric_and_keep_a_frequency_of_exactly_r",
        ),
        (
            "gaussians are twice as wide",
            "torch.exp2(-((distance / kept) ** 2))",
            "torch.exp2(-((distance / kept / 2) ** 2))",
            "experiments/accuracy/low_pass::low_pass_keeps_what_is_below_and_takes_what_is_above",
        ),
        (
            "removed energy is what is kept",
            "return 100 * (1 - kept / total)",
            "return 100 * (kept / total)",
            "experiments/accuracy/low_pass::every_number_equals_numpys",
        ),
    ),
    *_of(
        "experiments/accuracy/study",
        (
            "a tie is wrong",
            "(chosen > own) | ((chosen == own) & before)",
            "(chosen > own) | ((chosen == own) & ~before & (places != torch.arange(chosen.shape[1])[None]))",
            "experiments/accuracy/study::of_equal_logits_the_first_is_the_highest_as_argmax_says",
        ),
        (
            "NaN counts as right",
            "torch.where(chosen.isfinite().all(1), right, NOT_FINITE)",
            "right",
            "experiments/accuracy/study::logits_that_are_not_finite_are_neither_right_nor_wrong",
        ),
        (
            "relative to every picture",
            "2 * flags[known] + base[known]",
            "2 * flags[known] + 1",
            "experiments/accuracy/study::accuracies_are_of_what_both_sides_know",
        ),
        (
            "the interval is that of 90 %",
            "low, high = np.quantile(ratio(draws), (0.025, 0.975))",
            "low, high = np.quantile(ratio(draws), (0.05, 0.95))",
            "experiments/accuracy/study::intervals_are_those_of_a_proportion",
        ),
        (
            "a difference has the wrong sign",
            "100 * (two / np.maximum(base_two, 1) - one / np.maximum(base_one, 1))",
            "100 * (one / np.maximum(base_one, 1) - two / np.maximum(base_two, 1))",
            "experiments/accuracy/study::differences_draw_the_same_images_for_both_models",
        ),
    ),
    *_of(
        "experiments/result",
        (
            "a run goes on with other options",
            "made.get(name) != own.get(name)",
            "False",
            "models/identity::a_work_folder_is_of_one_run",
        ),
    ),
    *_of(
        "experiments/pictures/choosing",
        (
            "pictures of other weights are taken",
            "return recipe if recipe and shows(recipe, view, feature) else None",
            "return recipe",
            "models/identity::a_picture_in_an_atlas_of_other_weights_is_not_taken",
        ),
    ),
    *_of(
        "experiments/accuracy/background",
        (
            "foreground is background",
            "else (~inside, inside):",
            "else (inside, ~inside):",
            "experiments/accuracy/background::every_column_is_that_of_pictures_masked_by_hand",
        ),
        (
            "relative to another way",
            "*(accuracy(f, seed, flags[0]) for f in flags[1:])]",
            "*(accuracy(f, seed) for f in flags[1:])]",
            "experiments/accuracy/background::every_column_is_that_of_pictures_masked_by_hand",
        ),
        (
            "random boxes are the boxes",
            "else box_mask(size, random_boxes(boxes, size, rng))",
            "else box_mask(size, boxes)",
            "experiments/accuracy/background::controls_are_those_made_by_hand",
        ),
    ),
    *_of(
        "experiments/accuracy/boxes",
        (
            "a box ends before its last row and column",
            "inside[y0 : y1 + 1, x0 : x1 + 1] = True",
            "inside[y0:y1, x0:x1] = True",
            "experiments/accuracy/boxes::a_box_holds_its_last_row_and_column_and_no_pixel_outside",
        ),
    ),
    *_of(
        "experiments/accuracy/occlusion",
        (
            "blacked out tiles are not",
            "else change(photo, mask, seed).photo for",
            "else photo for",
            "experiments/accuracy/occlusion::every_row_is_that_of_tiles_changed_by_hand",
        ),
        (
            "every picture has the draw of the first",
            "seed = (example.row.key ^ config.seed) % 2**63",
            "seed = config.seed",
            "experiments/accuracy/occlusion::every_row_is_that_of_tiles_changed_by_hand",
        ),
    ),
    *_of(
        "experiments/pictures/agreement",
        (
            "pictures are guided by the images that are asked about",
            "exemplars(photographs, feature, N_IMAGES)]",
            "photographs.ranked(feature, helps=False)[:N_IMAGES]]",
            "experiments/pictures/guided::pictures_of_agreement_are_guided_by_the_half_that_helps",
        ),
    ),
    *_of(
        "experiments/pictures/agreement",
        (
            "pictures that images went into are judged by these images",
            'if (recipe := own_recipe(view, atlas, f)) and "guide" not in recipe]',
            "if own_recipe(view, atlas, f)]",
            "experiments/pictures/judging::an_atlas_is_judged_by_its_own_images_and_keeps_the_figures",
        ),
        (
            "pictures of an atlas are made anew",
            "known = atlas if given and seed == config.seed else None",
            "known = None",
            "experiments/pictures/judging::an_atlas_is_judged_by_its_own_images_and_keeps_the_figures",
        ),
        (
            "pictures are asked about the images that went into them",
            "known = atlas if given and seed == config.seed else None",
            "known = atlas if seed == config.seed else None",
            "experiments/pictures/judging::what_is_drawn_is_not_asked_about_by_pictures_that_its_images_went_into",
        ),
        (
            "a feature that hardly varies is first on every picture",
            "np.maximum(std, 0.1 * np.median(std) + 1e-30)",
            "np.maximum(std, 1e-30)",
            "experiments/pictures/agreement::a_feature_that_hardly_varies_takes_no_rank_from_others",
        ),
    ),
    *_of(
        "experiments/pictures/trials",
        (
            "features that tell no images apart are asked about",
            "if photographs.scores[:, i].max() > 0 and np.ptp(photographs.scores[:, i]) > 0]",
            "if photographs.scores[:, i].max() > 0]",
            "experiments/pictures/agreement::dead_features_are_passed_over",
        ),
    ),
    *_of(
        "experiments/pictures/realism",
        (
            "a brighter picture has another spectrum",
            "np.mean((apart - apart.mean()) ** 2)",
            "np.mean(apart**2)",
            "experiments/pictures/agreement::spectra_tell_waves_of_different_length_apart_and_not_brightness",
        ),
    ),
    *_of(
        "experiments/pictures/judging",
        (
            "a picture that came while another was judged gets its figure",
            "{str(f): (digests[f], one) for f, one in found.items()}",
            "{str(f): (digest_of(atlas.picture_path(f)), one) for f, one in found.items()}",
            "experiments/pictures/judging::pictures_that_come_while_others_are_judged_get_no_figure",
        ),
        (
            "a picture that comes while others are judged ends the command",
            ", judge=judge, features=tuple(digests))",
            ", judge=judge)",
            "experiments/pictures/judging::pictures_that_come_while_others_are_judged_get_no_figure",
        ),
        (
            "the best photograph counts as nine do",
            'row["1 exemplar"]',
            'row["9 exemplars"]',
            "experiments/pictures/judging::an_atlas_is_judged_by_its_own_images_and_keeps_the_figures",
        ),
    ),
    *_of(
        "atlas/agreement",
        (
            "figures of other pictures are dropped",
            'features = json.loads(path.read_text("utf-8")) if path.is_file() else {}',
            "features = {}",
            "experiments/pictures/judging::figures_of_other_pictures_stay",
        ),
    ),
    *_of(
        "experiments/pictures/realism",
        (
            "all photographs are compared",
            "permutation(len(photographs))[:_FOR_DISTANCE]",
            "permutation(len(photographs))",
            "experiments/pictures/guided::the_distance_is_to_a_thousand_photographs_at_most_whose_kernel_is_computed_once",
        ),
        (
            "the first photographs are compared",
            "np.random.default_rng(seed).permutation(len(photographs))[:_FOR_DISTANCE]",
            "np.arange(len(photographs))[:_FOR_DISTANCE]",
            "experiments/pictures/guided::the_distance_is_to_a_thousand_photographs_at_most_whose_kernel_is_computed_once",
        ),
    ),
    *_of(
        "experiments/pictures/choosing",
        (
            "a preset is taken whose images are not there",
            "if needs := needed(config):",
            "if needs := '':",
            "experiments/pictures/guided::experiments_without_real_images_refuse_presets_that_need_them",
        ),
        (
            "one image is searched where nine are taken",
            "k = max(k, N_IMAGES) if needed(how) else k",
            "k = k",
            "experiments/pictures/guided::triplets_are_guided_by_the_images_of_their_atlas",
        ),
    ),
    *_of(
        "atlas/guiding",
        (
            "all pictures have the images of a site's first feature",
            "atlas.hits(feature)[:N_IMAGES]",
            "atlas.hits(Feature(feature.site, 0))[:N_IMAGES]",
            "cli/guides::pictures_are_guided_by_the_images_that_an_atlas_stores_of_each_feature",
        ),
        (
            "a token's picture is of the mean",
            "target or feature, images",
            "feature, images",
            "cli/guides::pictures_are_guided_by_the_images_that_an_atlas_stores_of_each_feature",
        ),
    ),
    *_of(
        "cli/optimization",
        (
            "the seed does not reach the real images",
            'preset(args.preset or "fourier", **knobs)',
            'preset(args.preset or "fourier", **{k: v for k, v in knobs.items() if k != "seed"})',
            "cli/guides::pictures_are_guided_by_files_and_folders_and_say_so",
        ),
        (
            "images that the preset does not use are opened and forgotten",
            "if wrong := [name for name in given if name not in fitting]:",
            "if wrong := [name for name in given if not fitting]:",
            "cli/guides::real_images_that_do_not_fit_are_told_before_the_model_is_loaded",
        ),
        (
            "a folder's files are left out but the first",
            "if p.suffix.lower() in SUFFIXES) if folder.is_dir()",
            "if p.suffix.lower() in SUFFIXES)[:1] if folder.is_dir()",
            "cli/guides::pictures_are_guided_by_files_and_folders_and_say_so",
        ),
    ),
    *_of(
        "inside/places",
        (
            "patches are counted down the columns",
            "len(names) + r * cols + c for",
            "len(names) + c * rows + r for",
            "inside/places::a_token_is_named_by_its_place_or_its_name",
        ),
    ),
    *_of(
        "inside/figures",
        (
            "the most frequent label has the last color",
            "zip(order, CLASS_COLORS, strict=False)",
            "zip(order, CLASS_COLORS[::-1], strict=False)",
            "inside/figures::labels_have_colors_in_their_order_fainter_where_they_are_unlikely",
        ),
    ),
    *_of(
        "inside/looks",
        (
            "the mean over heads is of the first head",
            '"mean": heads.mean(1)',
            '"mean": heads[:, 0]',
            "cli/inside::heads_are_those_of_the_class_token_where_none_is_named",
        ),
    ),
    *_of(
        "ui/inside_values",
        (
            "tokens keep their length, and what is longest is cut off",
            "torch.nn.functional.normalize(values, dim=-1)",
            "values.clamp(-1, 1)",
            "ui/inside::tokens_give_the_cosines_of_the_site_in_8_bits",
        ),
        (
            "each row is in shares of the highest value of all",
            "weights.amax(-1)",
            "weights.amax().expand(len(weights))",
            "ui/inside::attention_of_each_head_comes_in_8_bits_and_joined_over_layers",
        ),
    ),
]


def main(words: Sequence[str]) -> int:
    """Plant the faults of the named modules, or all; 0 if each is caught."""
    chosen = [m for m in MUTANTS if not words or any(word in m.path for word in words)]
    texts = {m.path: (ROOT / m.path).read_text("utf-8") for m in chosen}
    broken = [
        f"{m}: its text is {texts[m.path].count(m.old)} times in the file"
        for m in chosen
        if texts[m.path].count(m.old) != 1
    ]
    n_at_once, start = int(os.environ.get("JOBS", os.cpu_count() or 1)), time.monotonic()
    warm_up()
    for job, outcome in run_jobs(_plain(chosen), n_at_once):
        if outcome.code != PASSED:
            broken.append(f"{job.tag} does not pass without a fault\n{outcome.output[-2000:]}")
    planted = [
        Job(m.tests, m.path, texts[m.path].replace(m.old, m.new), tag=m)
        for m in chosen
        if texts[m.path].count(m.old) == 1
    ]
    missed, n_caught = [], 0
    for job, outcome in run_jobs(planted, n_at_once):
        if outcome.code in (FAILED, TIMED_OUT):
            n_caught += 1
            print(f"caught in {outcome.seconds:5.1f} s  {job.tag}", flush=True)
        elif outcome.code == PASSED:
            missed.append(f"{job.tag}\n    - {job.tag.old!r}\n    + {job.tag.new!r}\n    passed: {' '.join(job.tests)}")
            print(f"MISSED in {outcome.seconds:5.1f} s  {job.tag}", flush=True)
        else:
            broken.append(f"{job.tag}: its tests cannot be run\n{outcome.output[-2000:]}")
    print(f"\n{n_caught} of {len(chosen)} faults caught in {time.monotonic() - start:.0f} s.")
    for title, lines in (("Not caught", missed), ("Errors of the list itself", broken)):
        if lines:
            print(f"\n{title}:\n" + "\n".join(lines))
    return 1 if missed or broken else 0


def _plain(mutants: Sequence[Mutant]) -> list[Job]:
    """The named tests of each file, without a fault."""
    names: dict[str, list[str]] = {}
    for test in dict.fromkeys(t for m in mutants for t in m.tests):
        names.setdefault(test.partition("::")[0], []).append(test)
    return [Job(tuple(tests), tag=file) for file, tests in names.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
