//! Every rule of `check`: its id, its name, how bad it is. Ids are stable: one that is no longer used is not given again.

use super::Severity;

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its id, which is also the name of its page under `docs/lints`.
    pub id: &'static str,
    /// A name for people.
    pub name: &'static str,
    /// How bad a finding usually is.
    pub severity: Severity,
    /// What it finds, in one sentence.
    pub summary: &'static str,
    /// Its page, in Markdown: what, an example that fires, why it surprises, a fix.
    pub page: &'static str,
}

macro_rules! rules {
    ($($constant:ident $id:literal $name:literal $severity:ident $summary:literal)*) => {
        $(
            #[doc = $summary]
            pub const $constant: &Rule = &Rule {
                id: $id,
                name: $name,
                severity: Severity::$severity,
                summary: $summary,
                page: include_str!(concat!("../../../../docs/lints/", $id, ".md")),
            };
        )*
        /// All of them, by id.
        pub const ALL: &[&Rule] = &[$($constant),*];
    };
}

rules! {
    UNREADABLE "RW001" "unreadable" Error "A file that cannot be read, or that contains something other than Kubernetes objects."
    INVALID "RW002" "invalid" Error "An object that an API server refuses."
    UNEVALUATED_KIND "RW003" "unevaluated-kind" Error "A policy of a kind, or with peers of a kind, that is not evaluated."
    DUPLICATE_OBJECT "RW004" "duplicate-object" Error "One object that is defined in two files."
    ODD_WRITING "RW005" "odd-writing" Warning "A value that means something other than it looks like."
    SILENT_WITHOUT_REASON "RW006" "silence-without-reason" Warning "An annotation that ignores a rule without a reason, or a rule that does not exist."
    LABEL_TYPE "RW007" "label-type" Warning "A label key or value that YAML reads as a boolean or a number."
    NOT_PROVEN "RW009" "not-proven" Error "Policies that do not compile, or a snapshot that contradicts them."
    INTENT_FAILED "RW030" "intent-failed" Error "An assertion about who can reach whom that the policies do not fulfil."
    INTENT_VACUOUS "RW031" "intent-vacuous" Error "An assertion about no pods, which is always true."
    MIS_INDENTED_PORTS "RW101" "mis-indented-ports" Warning "`ports` that do not belong to the rule they were written for."
    OR_WHERE_AND "RW102" "or-where-and" Warning "Two alternative peers where one peer with both selectors was probably meant."
    EGRESS_WITHOUT_DNS "RW103" "egress-without-dns" Warning "Pods that may send traffic, but not to any DNS server."
    DNS_WITHOUT_TCP "RW104" "dns-without-tcp" Note "DNS over UDP only: long answers fail."
    DNS_ELSEWHERE "RW105" "dns-elsewhere" Warning "Port 53 is open, but not to the DNS servers of this cluster."
    EGRESS_TYPE_MISSING "RW106" "egress-type-missing" Warning "An empty `egress` without policyTypes, which does not restrict egress."
    INGRESS_BY_DEFAULT "RW107" "ingress-by-default" Warning "Egress rules without policyTypes, which also deny all ingress."
    IGNORED_RULES "RW108" "ignored-rules" Warning "Rules of a direction that policyTypes leaves out."
    EMPTY_LIST "RW109" "empty-list" Warning "An empty list of peers or ports, which allows all of them."
    NULL_LABEL "RW110" "null-label" Error "A label without a value in a selector of a cluster-wide policy, which matches any value."
    PEER_SELECTS_NOTHING "RW201" "peer-selects-nothing" Warning "A peer that matches no pod."
    POLICY_SELECTS_NOTHING "RW202" "policy-selects-nothing" Warning "A policy that selects no pod."
    WRONG_NAMESPACE "RW203" "wrong-namespace" Warning "A policy that selects no pod of its namespace, but would in another."
    ABSENT_KEY "RW204" "absent-key" Warning "NotIn, which also matches pods that lack the label."
    HOST_NETWORK_ONLY "RW205" "host-network-only" Warning "A policy whose pods are all on the host network, where no policy applies."
    UNKNOWN_NAMED_PORT "RW206" "unknown-named-port" Warning "A named port that no destination pod has."
    BLOCK_FOR_PODS "RW301" "block-for-pods" Warning "A block of pod addresses instead of a selector."
    ODD_BLOCK "RW302" "odd-block" Warning "A block that is not read the way it is written."
    OVERLAPPING_BLOCKS "RW303" "overlapping-blocks" Note "A block inside another one of the same rule."
    EMPTY_BLOCK "RW304" "empty-block" Warning "A block whose exceptions leave nothing of it."
    MISSING_FAMILY "RW305" "missing-family" Warning "All of one address family, nothing of the other, which the pods also have."
    SERVICE_PORT "RW401" "service-port" Warning "A Service's port instead of the pods' port."
    SERVICE_ADDRESS "RW402" "service-address" Warning "A Service's address, which packets no longer have when policies see them."
    REDUNDANT_RULE "RW403" "redundant-rule" Warning "A rule that is redundant: others already allow all of it."
    UNPROTECTED "RW404" "unprotected" Note "Pods that no policy restricts."
    EQUAL_PRIORITY "RW405" "equal-priority" Warning "Policies of one tier and priority that disagree: their names decide."
    UNREACHABLE_RULE "RW406" "unreachable-rule" Warning "A rule that never applies: rules before it decide all that it matches."
    HIDDEN_POLICY "RW407" "hidden-policy" Warning "A policy that no pod reaches: the tier before denies by default."
    IDLE_BASELINE "RW408" "idle-baseline" Note "A Baseline that applies to no pod here: other policies decide first."
    OVERRIDES_TENANTS "RW409" "overrides-tenants" Warning "A rule that allows what the NetworkPolicies of namespaces deny."
    SAME_POLICY_TWICE "RW410" "same-policy-twice" Warning "Two policies of one tier with equal content."
    HTTP_RULE "RW411" "http-rule" Error "A rule about HTTP methods or paths, which are not evaluated."
    UNKNOWN_TIER "RW412" "unknown-tier" Warning "A policy of a tier that does not exist: it comes last, and the rest is denied."
    UNKNOWN_SERVICE_ACCOUNT "RW413" "unknown-service-account" Warning "A service account that no pod runs as."
    API_SERVER_BY_SELECTOR "RW414" "api-server-by-selector" Warning "A selector for the API server, which no selector matches."
    BLOCKS_AND_PODS "RW501" "blocks-and-pods" Note "Portability: Cilium does not match pods by ipBlock."
    ICMP_ALLOWED "RW502" "icmp-allowed" Note "Portability: kube-router allows ICMP regardless of policies."
    PORT_LIMIT "RW503" "port-limit" Note "Portability: the AWS agent keeps 24 ports or ranges per address."
    SCTP "RW504" "sctp" Note "Portability: SCTP must be enabled in Cilium; kube-router ignores it."
    FRAGMENTS "RW505" "fragments" Note "Portability: later fragments are judged by the wrong bytes, or dropped."
    ESTABLISHED "RW506" "established" Note "Portability: Calico and Antrea keep connections that a new policy denies."
    PORT_RANGES "RW507" "port-ranges" Note "Portability: some implementations in use ignore endPort."
    LONGEST_PREFIX "RW508" "longest-prefix" Note "Portability: the AWS agent lets the longest prefix decide."
    BASELINE_SKIPPED "RW509" "baseline-skipped" Note "Portability: kube-network-policies skips the Baseline in directions that a NetworkPolicy leaves open."
    BLOCK_NOTATION "RW510" "block-notation" Note "Portability: Calico allows everyone where it cannot parse an ipBlock."
    HIGH_PRIORITY "RW511" "high-priority" Note "Portability: OVN-Kubernetes does not enforce priorities above 99."
    NAMED_PORT_OF_ADMIN "RW512" "named-port-of-admin" Note "Portability: kube-network-policies matches every port of a pod that has the named one."
    TIER_WITHOUT_ORDER "RW513" "tier-without-order" Note "Portability: a Tier without order stands beside tier default, not last."
    AMONG_NETWORK_POLICIES "RW514" "among-network-policies" Note "Portability: a policy at order 1000 decides between NetworkPolicies, by name."
    SETS_AS_PEERS "RW515" "sets-as-peers" Note "Portability: Calico matches a namespace's NetworkSets by namespace selectors of cluster-wide policies."
    SERVICE_WITHOUT_NAMESPACE "RW516" "service-without-namespace" Note "Portability: Calico matches nothing where a rule names a Service without its namespace."
    INIT_CONTAINER_PORT "RW517" "init-container-port" Note "Portability: Calico counts the named ports of init containers."
    TYPES_LEFT_OUT "RW518" "types-left-out" Note "Portability: whether an empty list of egress rules isolates depends on how the policy was created."
    TUNNELS_OF_PODS "RW519" "tunnels-of-pods" Note "Portability: Calico drops VXLAN and IP in IP from pods before policy."
}

/// A rule by its id.
pub fn by_id(id: &str) -> Option<&'static Rule> {
    ALL.iter().copied().find(|rule| rule.id == id)
}

impl Rule {
    /// Where its page is, from the root of the repository.
    pub fn page_path(&self) -> String {
        format!("docs/lints/{}.md", self.id)
    }
}
