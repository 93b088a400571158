package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// meshFile may hold a MeshConfig, whose defaultConfig is a ProxyConfig.
const meshFile = "./etc/istio/config/mesh"

// proxyConfig is what is read of Istio's ProxyConfig; pointers tell what is set.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   *uint16           `json:"proxyAdminPort"`
	StatsPort        *uint16           `json:"statsPort"`
	Concurrency      *uint16           `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// readMesh reads the ProxyConfig in a MeshConfig.
func (c *config) readMesh(text string) error {
	var mesh struct {
		DefaultConfig proxyConfig `json:"defaultConfig"`
	}
	if err := yaml.Unmarshal([]byte(text), &mesh); err != nil {
		return err
	}
	return c.take(mesh.DefaultConfig)
}

// readProxyConfig reads the variable PROXY_CONFIG.
func (c *config) readProxyConfig(text string) error {
	var p proxyConfig
	if err := yaml.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	return c.take(p)
}

// take puts what p sets over what is there.
func (c *config) take(p proxyConfig) error {
	if p.DiscoveryAddress != "" {
		if _, _, err := endpoint(p.DiscoveryAddress); err != nil {
			return fmt.Errorf("discoveryAddress: %w", err)
		}
		c.XDSAddress = p.DiscoveryAddress
	}
	if p.ProxyAdminPort != nil {
		c.AdminAddr = net.JoinHostPort("localhost", strconv.Itoa(int(*p.ProxyAdminPort)))
	}
	if p.StatsPort != nil {
		c.StatsAddr = net.JoinHostPort("", strconv.Itoa(int(*p.StatsPort)))
	}
	if p.Concurrency != nil {
		c.Concurrency = share{set: true, n: int(*p.Concurrency)}
	}
	for k, v := range p.ProxyMetadata {
		if c.ProxyMetadata == nil {
			c.ProxyMetadata = map[string]string{}
		}
		c.ProxyMetadata[strings.TrimPrefix(k, "ISTIO_META_")] = v
	}
	return nil
}

// proxyMetadata are those of the ProxyConfig, and over them the variables of
// their own.
func (c *config) proxyMetadata() map[string]string {
	out := maps.Clone(c.ProxyMetadata)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, c.Meta)
	return out
}

// readMetaJSON reads one ISTIO_METAJSON_ variable. One that is not JSON is left
// out, as the reference has it: it is somebody else's annotation.
func (c *config) readMetaJSON(name, text string) error {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		c.warnings = append(c.warnings, fmt.Sprintf("ISTIO_METAJSON_%s has no effect: it is not JSON: %v", name, err))
		return nil
	}
	if c.MetaJSON == nil {
		c.MetaJSON = map[string]any{}
	}
	c.MetaJSON[name] = v
	return nil
}
