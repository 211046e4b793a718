//! Which VLANs a port is in.

use std::collections::BTreeMap;

use net_types::VlanId;
use netlink::{PortVlan, VlanRange};

use super::config::Config;

/// What a port shall do with one VLAN, or does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Untagged frames that come in belong to it.
    pub(crate) pvid: bool,
    /// Its frames go out untagged.
    pub(crate) untagged: bool,
}

/// All VLANs of a port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Vlans(BTreeMap<VlanId, Membership>);

impl Vlans {
    /// What the network asks for on a bridge that puts new ports into `default`; none if it asks for nothing and the
    /// port stays as the bridge made it.
    pub(crate) fn wanted(config: &Config, default: Option<VlanId>) -> Option<Self> {
        if config.vlan.is_none() && config.trunk.is_empty() {
            return None;
        }
        let mut vlans = Self::default();
        for range in &config.trunk {
            vlans.add(PortVlan::tagged(*range));
        }
        let pvid = config.vlan.is_none();
        match default {
            Some(default) if config.preserve_default_vlan => {
                vlans.add(PortVlan { range: default.into(), pvid, untagged: true });
            }
            // A trunk has to put untagged frames somewhere; the reference plugin says VLAN 1.
            _ if pvid => vlans.add(PortVlan::access(VlanId::DEFAULT)),
            _ => {}
        }
        // Last, because it decides over what a trunk says of the same VLAN.
        if let Some(vlan) = config.vlan {
            vlans.add(PortVlan::access(vlan));
        }
        Some(vlans)
    }

    /// The VLANs of a list as the kernel reports it.
    pub(crate) fn from_list(list: Vec<PortVlan>) -> Self {
        let mut vlans = Self::default();
        vlans.extend(list);
        vlans
    }

    /// The VLANs that are the network's, and not just its bridge's habit, as an uplink carries them: tagged.
    pub(crate) fn of_network(config: &Config) -> Self {
        let ranges = config.trunk.iter().copied().chain(config.vlan.map(VlanRange::from));
        Self::from_list(ranges.map(PortVlan::tagged).collect())
    }

    /// Those that `other` does not have, however it has the rest.
    pub(crate) fn without(&self, other: &Self) -> Self {
        self.filter(|vlan, _| !other.0.contains_key(vlan))
    }

    /// Those that `other` has too, however it has them.
    pub(crate) fn within(&self, other: &Self) -> Self {
        self.filter(|vlan, _| other.0.contains_key(vlan))
    }

    /// Those that a port is in, by a list as the kernel reports it.
    pub(crate) fn within_list(&self, list: &[PortVlan]) -> Self {
        self.filter(|vlan, _| list.iter().any(|one| (one.range.first..=one.range.last).contains(vlan)))
    }

    /// Those that `other` does not have, or not so.
    pub(crate) fn differing_from(&self, other: &Self) -> Self {
        self.filter(|vlan, membership| other.0.get(vlan) != Some(membership))
    }

    fn filter(&self, keep: impl Fn(&VlanId, &Membership) -> bool) -> Self {
        let kept = self.0.iter().filter(|(vlan, membership)| keep(vlan, membership));
        Self(kept.map(|(vlan, membership)| (*vlan, *membership)).collect())
    }

    /// No VLAN.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if those of `other` are among these.
    pub(crate) fn include(&self, other: &Self) -> bool {
        other.without(self).is_empty()
    }

    /// Adds those of a list as the kernel reports it.
    pub(crate) fn extend(&mut self, list: Vec<PortVlan>) {
        list.into_iter().for_each(|vlan| self.add(vlan));
    }

    fn add(&mut self, PortVlan { range, pvid, untagged }: PortVlan) {
        for id in range.first.get()..=range.last.get() {
            if let Ok(vlan) = VlanId::try_from(id) {
                self.0.insert(vlan, Membership { pvid, untagged });
            }
        }
    }

    /// True if the port is in `vlan`.
    pub(crate) fn contains(&self, vlan: VlanId) -> bool {
        self.0.contains_key(&vlan)
    }

    /// As few ranges as there can be.
    pub(crate) fn ranges(&self) -> Vec<PortVlan> {
        let mut ranges: Vec<PortVlan> = Vec::new();
        for (&vlan, &Membership { pvid, untagged }) in &self.0 {
            match ranges.last_mut() {
                // The kernel refuses a range that holds a PVID.
                Some(PortVlan { range, pvid: false, untagged: u })
                    if !pvid && *u == untagged && range.last.get() + 1 == vlan.get() =>
                {
                    range.last = vlan;
                }
                _ => ranges.push(PortVlan { range: VlanRange { first: vlan, last: vlan }, pvid, untagged }),
            }
        }
        ranges
    }
}

impl std::fmt::Display for Vlans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.ranges();
        if ranges.is_empty() {
            return f.write_str("none");
        }
        for (number, PortVlan { range: VlanRange { first, last }, pvid, untagged }) in
            ranges.iter().enumerate()
        {
            let separator = if number == 0 { "" } else { ", " };
            write!(f, "{separator}{first}")?;
            if first != last {
                write!(f, "-{last}")?;
            }
            write!(f, "{}{}", if *pvid { " PVID" } else { "" }, if *untagged { " untagged" } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(vlan: u16, trunk: &[(u16, u16)], preserve: bool) -> String {
        let id = |id: u16| VlanId::try_from(id).unwrap();
        let config = Config {
            vlan: (vlan != 0).then(|| id(vlan)),
            trunk: trunk
                .iter()
                .map(|(first, last)| VlanRange { first: id(*first), last: id(*last) })
                .collect(),
            preserve_default_vlan: preserve,
            ..Config::for_tests()
        };
        Vlans::wanted(&config, Some(VlanId::DEFAULT))
            .map_or("untouched".to_owned(), |vlans| vlans.to_string())
    }

    #[test]
    fn vlan_and_trunk_combine_as_documented() {
        assert_eq!(wanted(0, &[], false), "untouched");
        assert_eq!(wanted(100, &[], false), "100 PVID untagged");
        assert_eq!(wanted(100, &[], true), "1 untagged, 100 PVID untagged");
        assert_eq!(wanted(0, &[(10, 20)], false), "1 PVID untagged, 10-20");
        assert_eq!(wanted(0, &[(10, 20)], true), "1 PVID untagged, 10-20");
        assert_eq!(wanted(100, &[(10, 20)], false), "10-20, 100 PVID untagged");
        assert_eq!(wanted(15, &[(10, 20)], false), "10-14, 15 PVID untagged, 16-20");
        assert_eq!(wanted(1, &[], true), "1 PVID untagged");
        assert_eq!(wanted(0, &[(10, 20), (21, 30), (40, 40)], false), "1 PVID untagged, 10-30, 40");
    }
}
