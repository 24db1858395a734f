# SPDX-License-Identifier: Apache-2.0
"""What the tests of several rooms share; fixtures stay in the conftest of their folder."""
