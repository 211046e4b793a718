//! What policies together want of each NIC.
//!
//! The merging is the operator's (`api/v1/helper.go`): policies are taken from the least to the most important, and
//! each replaces what was wanted so far, except for groups of VFs that do not overlap with its own and serve another
//! resource. Where groups stay, or two policies are equally important, the larger numbers count.

use super::PolicyError;
use super::node::Nic;
use super::spec::{DeviceType, Policy};

/// What is wanted of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) nic: Nic,
    pub(super) num_vfs: u32,
    /// At least, in bytes.
    pub(super) mtu: Option<u32>,
    pub(super) externally_managed: bool,
    pub(super) groups: Vec<Group>,
}

/// VFs that one policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) device_type: DeviceType,
    /// In bytes.
    pub(super) mtu: Option<u32>,
    pub(super) resource: String,
    pub(super) policy: String,
}

impl Group {
    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// What `policies` want of `nics`, in order of the NICs; those that no policy selects are left out.
pub(super) fn merge(policies: &[Policy], nics: &[Nic]) -> Result<Vec<Desired>, PolicyError> {
    let mut ordered: Vec<&Policy> = policies.iter().collect();
    ordered.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
    nics.iter().filter_map(|nic| merge_one(&ordered, nic).transpose()).collect()
}

fn merge_one(ordered: &[&Policy], nic: &Nic) -> Result<Option<Desired>, PolicyError> {
    let mut desired: Option<Desired> = None;
    let mut last_priority = None;
    for policy in ordered.iter().filter(|policy| policy.selector.selects(nic)) {
        if policy.num_vfs > nic.total_vfs {
            let (policy, wanted) = (policy.name.clone(), policy.num_vfs);
            return Err(PolicyError::TooMany { policy, pf: nic.address, wanted, total: nic.total_vfs });
        }
        let mut new = Desired {
            nic: nic.clone(),
            num_vfs: policy.num_vfs,
            mtu: policy.mtu,
            externally_managed: policy.externally_managed,
            groups: group(policy, nic).into_iter().collect(),
        };
        if let Some(old) = desired.take() {
            new.take_over(old, last_priority == Some(policy.priority));
        }
        last_priority = Some(policy.priority);
        desired = Some(new);
    }
    Ok(desired)
}

impl Desired {
    fn take_over(&mut self, old: Self, equally_important: bool) {
        let own = self.groups.first().cloned();
        let stays = |group: &Group| {
            own.as_ref().is_none_or(|own| own.resource != group.resource && !own.overlaps(group))
        };
        // A policy that wants no VFs at all takes them from all others.
        let kept: Vec<_> = old.groups.into_iter().filter(|group| self.num_vfs > 0 && stays(group)).collect();
        if equally_important || !kept.is_empty() {
            self.mtu = self.mtu.max(old.mtu);
            self.num_vfs = self.num_vfs.max(old.num_vfs);
        }
        self.groups.extend(kept);
    }
}

fn group(policy: &Policy, nic: &Nic) -> Option<Group> {
    let named = policy.selector.pf_names.iter().find(|pf| Some(&pf.name) == nic.link.as_ref());
    let range = named.and_then(|pf| pf.range);
    let (first, last) = match range {
        Some(range) => range,
        None => (0, policy.num_vfs.checked_sub(1)?),
    };
    Some(Group {
        first,
        last,
        device_type: policy.device_type,
        mtu: policy.mtu,
        resource: policy.resource.clone(),
        policy: policy.name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::policy_of;
    use super::*;

    fn nic() -> Nic {
        Nic {
            address: "0000:01:00.0".parse().unwrap(),
            vendor: "8086".into(),
            device: "10c9".into(),
            link: "eth0".parse().ok(),
            total_vfs: 7,
            num_vfs: 0,
        }
    }

    fn merged(policies: &[(&str, &str)]) -> Desired {
        let policies: Vec<_> = policies.iter().map(|(name, spec)| policy_of(name, spec).unwrap()).collect();
        merge(&policies, &[nic()]).unwrap().remove(0)
    }

    fn groups(desired: &Desired) -> Vec<(u32, u32, &str)> {
        desired.groups.iter().map(|group| (group.first, group.last, group.policy.as_str())).collect()
    }

    #[test]
    fn one_policy_gets_what_it_wants() {
        let desired = merged(&[("p", "mtu: 9000")]);
        assert_eq!((desired.num_vfs, desired.mtu), (4, Some(9000)));
        assert_eq!(groups(&desired), [(0, 3, "p")]);
        let other = policy_of("p", "nicSelector: {pfNames: [eth1]}").unwrap();
        assert_eq!(merge(&[other], &[nic()]).unwrap(), []);
    }

    #[test]
    fn the_lower_number_wins() {
        let desired =
            merged(&[("a", "{priority: 10, numVfs: 2}"), ("b", "{priority: 20, numVfs: 6, mtu: 9000}")]);
        assert_eq!((desired.num_vfs, desired.mtu), (2, None));
        assert_eq!(groups(&desired), [(0, 1, "a")]);
    }

    #[test]
    fn ranges_that_do_not_overlap_share_a_nic() {
        let range = |name, range: &str, priority| {
            (
                name,
                format!(
                    "{{priority: {priority}, numVfs: 6, resourceName: {name}, nicSelector: {{pfNames: [\"eth0#{range}\"]}}}}"
                ),
            )
        };
        let policies = [range("a", "0-1", 10), range("b", "2-5", 20), range("c", "4-5", 30)];
        let policies: Vec<_> = policies.iter().map(|(name, spec)| (*name, spec.as_str())).collect();
        assert_eq!(groups(&merged(&policies)), [(0, 1, "a"), (2, 5, "b")]);
    }

    #[test]
    fn more_vfs_than_there_can_be_are_refused() {
        let policy = policy_of("p", "numVfs: 8").unwrap();
        let error = merge(&[policy], &[nic()]).unwrap_err();
        assert!(matches!(error, PolicyError::TooMany { wanted: 8, total: 7, .. }), "{error}");
    }
}
