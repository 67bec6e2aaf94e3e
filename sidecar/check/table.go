package check

// checks are all of them. Their names stay: people's scripts know them.
var checks = []check{
	{"api-version", "Kubernetes 1.33 or later is recommended", checkAPI},
	{"rights", "ask as somebody who may, or take what is skipped below as unknown", checkRights},
	{"clocks", "have all machines keep time by NTP: certificates and the tokens of pulls depend on it", checkClocks},

	{"webhook", "install the chart, or look at the webhook configuration", checkWebhook},
	{"webhook-namespace", "look at namespaceSelector of the webhook configuration and the labels of the namespace", checkWebhookNamespace},
	{"webhook-authority", "the injector writes the caBundle: look at its log; a tool that applies the chart again must leave that field alone", checkBundle},
	{"webhook-certificate", "the injector renews it by itself: look at its log", checkLeaf},
	{"injector-ready", "look at the injector's pods and their logs", checkInjector},
	{"injection", "look at the injector's log, and whether the API server reaches its port", checkInjection},

	{"peer-service", "the chart has it for each namespace that it is told of", checkPeerService},
	{"peer-service-global", "each cluster needs the Service with that annotation", checkGlobal},
	{"slice-sync", "set clustermesh.enableEndpointSliceSynchronization=true for Cilium, and restart its operator", checkSync},
	{"namespace-global", "set the annotation " + globalNamespace + ": \"true\" on the namespace, in each cluster", checkNamespace},
	{"slices", "cilium clustermesh status says whether the clusters are joined", checkSlices},
	{"slice-rights", "bind the pods' service account to a Role with get, list and watch on endpointslices, as the chart does", checkAccounts},
	{"peer-secret", "put a certificate and authority, or a shared key, into the Secret, alike in all clusters", checkPeerSecret},
	{"peers", "port 18443 must be open between the pods of all clusters; docs/operations.md says what each condition means", checkPeers},
	{"udp", "packets of 1,300 bytes must pass between the pods of all clusters: look at the MTU of the network, and let UDP 18443 in as well as the media ports", checkDatagrams},
	{"relays", "UDP must pass from the relay's pod to the media port of the parent's server", checkRelays},

	{"pods", "create them anew when they carry no streams, such as by kubectl rollout restart; events of their owners say why not", checkInjected},
	{"sidecars-ready", "look at the logs of container sidestream", checkReady},
	{"versions", "all versions work together for an upgrade; restart what is behind when it carries no streams", checkVersions},
	{"media-servers", "/readyz of the sidecar says what the media server answered", checkServer},
	{"prestop", "have the hook ask the sidecar at that address, and wait for the answer", checkPreStop},
	{"headless-services", "have clients take the gateway's port, or a Service with a cluster IP", checkHeadless},
	{"services", "change targetPort as shown", checkCapture},
	{"policy-ports", "write the port's number into the policy, or annotate the pods with sidestream.dev/native: \"false\"", checkPolicies},
	{"address-permissions", "permit by tokens or passwords instead, and give those to the sidecar", checkAddresses},
}
