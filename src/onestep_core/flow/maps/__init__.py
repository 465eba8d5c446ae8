"""Flow maps: jumps, the identities of an average velocity, and conversions."""

from onestep_core.flow.maps.conversions import average_velocity_from_displacement as average_velocity_from_displacement
from onestep_core.flow.maps.conversions import average_velocity_from_flow_map as average_velocity_from_flow_map
from onestep_core.flow.maps.conversions import consistency_from_flow_map as consistency_from_flow_map
from onestep_core.flow.maps.conversions import flow_map_from_average_velocity as flow_map_from_average_velocity
from onestep_core.flow.maps.conversions import from_duration as from_duration
from onestep_core.flow.maps.conversions import from_log_step as from_log_step
from onestep_core.flow.maps.conversions import from_reversed as from_reversed
from onestep_core.flow.maps.conversions import instantaneous as instantaneous
from onestep_core.flow.maps.conversions import velocity_from_flow_map as velocity_from_flow_map
from onestep_core.flow.maps.identities import eulerian_derivative as eulerian_derivative
from onestep_core.flow.maps.identities import eulerian_target as eulerian_target
from onestep_core.flow.maps.identities import lagrangian_derivative as lagrangian_derivative
from onestep_core.flow.maps.identities import lagrangian_target as lagrangian_target
from onestep_core.flow.maps.identities import semigroup_target as semigroup_target
from onestep_core.flow.maps.identities import two_jump_target as two_jump_target
from onestep_core.flow.maps.jumps import Chord as Chord
from onestep_core.flow.maps.jumps import chord as chord
from onestep_core.flow.maps.jumps import jump as jump
from onestep_core.flow.maps.jumps import two_jumps as two_jumps
