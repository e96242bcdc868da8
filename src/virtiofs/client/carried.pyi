# SPDX-License-Identifier: Apache-2.0
REASONS: dict[int, str]
NAMES: dict[int, str]
