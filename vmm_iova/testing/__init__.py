# SPDX-License-Identifier: Apache-2.0
"""For the tests of your VMM or driver: a pytest plugin, and strategies for Hypothesis.

The plugin needs no import: pytest finds it, as soon as this package is installed. Its fixtures are
described in `plugin`; `strategies` needs the extra `vmm-iova[testing]`.
"""
